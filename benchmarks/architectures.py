"""Random models of every architecture of the test zoo, all the way: stream, quantize, verify, load with transformers, compare.

    python benchmarks/architectures.py [NAME ...]

For each model: are streamed logits the whole model's bit for bit? For int8, int4, int3 and int2: does verification pass, and
is the KL divergence that transformers' own loading gives the one that verification measured (to 1e-6 + 1e-3 · KL)?
Writes benchmarks/results/architectures.json and prints a table.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

import bitbudget  # noqa: F401  registers the format
from bitbudget.calibration.documents import default_text
from bitbudget.calibration.split import split
from bitbudget.calibration.tokenizer import Tokenizer
from bitbudget.calibration.tokens import TokenSequence
from bitbudget.models.source import SourceModel
from bitbudget.models.stream import BlockStream, CheckpointWeights
from bitbudget.pipeline.api import quantize
from bitbudget.pipeline.texts import sample
from bitbudget.pipeline.verify import VERIFY_CUT

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
import zoo

RESULT = Path(__file__).parent / "results" / "architectures.json"
CHOICES = ("int8:g32", "int4:g32", "int3:g32", "int2:g32")


def whole_logits(folder: Path, sequences: tuple[TokenSequence, ...]) -> list[torch.Tensor]:
    """Logits by transformers alone, batch of one."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return [model(sequence.ids[None], use_cache=False).logits[0] for sequence in sequences]


def divergence(expected: list[torch.Tensor], found: list[torch.Tensor], sequences: tuple[TokenSequence, ...]) -> float:
    """KL in nats per token over the scored positions; written apart from the package's own."""
    total, count = 0.0, 0
    for p, q, sequence in zip(expected, found, sequences, strict=True):
        log_p = p[sequence.positions].double().log_softmax(-1)
        log_q = q[sequence.positions].double().log_softmax(-1)
        total += float(torch.nn.functional.kl_div(log_q, log_p, log_target=True, reduction="sum"))
        count += sequence.scored
    return total / count


def examine(name: str, folder: Path) -> dict[str, Any]:
    """Everything about one architecture."""
    zoo.make_model(name, folder / "source", dtype=torch.bfloat16, shards=3, text=True)
    source = SourceModel.open(folder / "source")
    text = default_text()
    tokenizer = Tokenizer.open(source.folder)
    sequences = sample(text, split(text).acceptance, tokenizer, source, VERIFY_CUT).sequences
    expected = whole_logits(source.folder, sequences)
    stream = BlockStream(source, CheckpointWeights(source.checkpoint), torch.device("cpu"), torch.float32)
    streamed = list(stream.logits(stream.forward([sequence.ids for sequence in sequences])))
    equal = all(torch.equal(one, other) for one, other in zip(expected, streamed, strict=True))
    deviation = float(torch.cat(expected).std())
    result: dict[str, Any] = {"logit_deviation": deviation, "streamed_equal": equal, "choices": {}}
    for choice in CHOICES:
        output = folder / choice.replace(":", "-")
        verification = quantize(source.folder, choice, output, embedding="int8:g32")["verification"]
        measured = verification["measurement"]["kl"]
        loaded = divergence(expected, whole_logits(output, sequences), sequences)
        result["choices"][choice] = {
            "passed": verification["passed"],
            "kl_verify": measured,
            "kl_transformers": loaded,
            "agree": abs(loaded - measured) <= 1e-6 + 1e-3 * measured,
        }
    return result


def main() -> None:
    names = sys.argv[1:] or [*zoo.ARCHITECTURES, *zoo.HELD_OUT]
    results = {}
    for name in names:
        with tempfile.TemporaryDirectory() as temporary:
            results[name] = examine(name, Path(temporary))
        show(name, results[name])
    if not sys.argv[1:]:
        RESULT.write_text(json.dumps(results, indent=1) + "\n")


def show(name: str, result: dict[str, Any]) -> None:
    """One line of the table."""
    cells = [
        f"{entry['kl_verify']:.6f} {'=' if entry['agree'] else 'DIFFERS ' + format(entry['kl_transformers'], '.6f')}"
        f"{'' if entry['passed'] else ' FAILED'}"
        for entry in result["choices"].values()
    ]
    equal = "equal" if result["streamed_equal"] else "DIFFERENT"
    print(f"{name:12s} logits {equal}, deviation {result['logit_deviation']:.2f}; KL " + " | ".join(cells), flush=True)


if __name__ == "__main__":
    main()
