"""The model card: what a person who finds the folder needs to know, made from the record alone."""

from collections import Counter
from typing import Any


def model_card(record: dict[str, Any]) -> str:
    """Markdown text of README.md."""
    plan, source = record["output"], record["source"]
    head = [
        "---",
        "library_name: transformers",
        "tags: [bitbudget, quantized]",
        "---",
        "",
        f"# {source['name']}, quantized by bitbudget",
        "",
        f"{plan['weights_bytes']:,} bytes of weights, {plan['stored_bits']:.3f} stored bits a weight "
        f"({plan['code_bits']:.3f} code bits in the blocks' linears). Method: {plan['settings']['method']}.",
        "",
        "```python",
        "import bitbudget  # registers the format with transformers",
        "from transformers import AutoModelForCausalLM",
        "",
        'model = AutoModelForCausalLM.from_pretrained("this folder")',
        "```",
        "",
    ]
    return "\n".join([*head, *_choices(plan), *_verification(record), *_kept(plan), *_provenance(record)])


def _choices(plan: dict[str, Any]) -> list[str]:
    counts: Counter[tuple[str, str]] = Counter()
    nbytes: Counter[tuple[str, str]] = Counter()
    for entry in plan["layers"].values():
        counts[entry["kind"], entry["choice"]] += 1
        nbytes[entry["kind"], entry["choice"]] += entry["bytes"]
    rows = [f"| {kind} | `{choice}` | {counts[kind, choice]} | {nbytes[kind, choice]:,} |" for kind, choice in counts]
    noted: dict[str, list[str]] = {}
    for name, entry in plan["layers"].items():
        if "note" in entry:
            noted.setdefault(entry["note"], []).append(name)
    notes = [f"- {note} ({len(names)}): {', '.join(f'`{name}`' for name in names)}" for note, names in noted.items()]
    table = ["## How it is stored", "", "| layers | choice | count | bytes |", "|---|---|--:|--:|", *rows, ""]
    return table + (["Layers that could not take the choice asked for:", "", *notes, ""] if notes else [])


def _verification(record: dict[str, Any]) -> list[str]:
    verification = record.get("verification")
    if not verification:
        return ["## Verification", "", "Not verified yet: run `bitbudget verify` on this folder.", ""]
    result = verification.get("measurement", {})
    lines = [
        "## Verification",
        "",
        f"{'Passed' if verification['passed'] else 'FAILED'}: {', '.join(verification['checks'])}.",
    ]
    lines += [f"- {problem}" for problem in verification["problems"]]
    if "kl" in result:
        error = f" ± {result['kl_se']:.5f}" if "kl_se" in result else ""
        lines += [
            "",
            f"KL divergence from the original {result['kl']:.5f}{error} nats a token; same most likely token at "
            f"{100 * result['top1']:.2f} % of the positions.",
        ]
    if "perplexity" in result:
        against = f" (original {result['reference_perplexity']:.4f})" if "reference_perplexity" in result else ""
        lines += [
            "",
            f"Perplexity {result['perplexity']:.4f} a token{against}, {result['word_perplexity']:.4f} a word, on "
            f"{result['tokens']:,} tokens of {record['text']['name']}, part {verification['text']['part']}, in windows of "
            f"{result['window']} tokens with stride {result['stride']}.",
        ]
    return [*lines, ""]


def _kept(plan: dict[str, Any]) -> list[str]:
    reasons = Counter(plan["kept"].values())
    return ["## Kept as it was", "", *(f"- {count} tensors: {reason}" for reason, count in reasons.items()), ""]


def _provenance(record: dict[str, Any]) -> list[str]:
    versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    files = record["other_files"]
    left_out = [f"- `{name}` was not copied: {reason}" for name, reason in files["left_out"].items()]
    return [
        "## Provenance",
        "",
        f"- Made with {versions}.",
        f"- Text: {record['text']['name']} (sha256 {record['text']['sha256']}).",
        "- `bitbudget.json` holds the plan, the hash of every input and of every stored tensor, and the verification.",
        *left_out,
        "",
    ]
