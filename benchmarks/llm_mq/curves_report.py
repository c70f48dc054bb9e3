"""Tables of what `curves.py` measured.

    python benchmarks/llm_mq/curves_report.py demo twin

Reads `results/curves_MODEL.json`, writes `results/curves_MODEL.md`.
"""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from curves import APART, BUDGETS
from single_layers import RESULTS

from bitbudget.pipeline.measure import ratio_error

Row = Mapping[str, Any]
UNIFORM = ("RTN", "RTN, clip", "AWQ, scale", "AWQ, scale and clip")
OURS = ("ours", "ours, without scales", "ours, scales again")
SIGNIFICANT = 2  # standard errors


def apart(one: Row, other: Row, accepting: bool = False) -> tuple[float, float]:
    """KL of one minus that of the other, and its paired standard error, on the unused or the acceptance text."""
    names = [name for name in one["documents"] if (int(name) >= APART) == accepting]
    gaps = [one["documents"][name][0] - other["documents"][name][0] for name in names]
    tokens = [one["documents"][name][1] for name in names]
    error = ratio_error(gaps, tokens)
    return sum(gaps) / sum(tokens), math.nan if error is None else error


def signed(gap: tuple[float, float]) -> str:
    return f"{gap[0]:+.5f} ± {gap[1]:.5f}"


def best_uniform(rows: Sequence[Row], most: int) -> Row | None:
    """Of the uniform plans of at most so many bytes, the one of least KL on the unused text: more than a user could know."""
    fitting = [row for row in rows if row["curve"] in UNIFORM and row["bytes"] <= most]
    return min(fitting, key=lambda row: row["kl"], default=None)


def guarded(rows: Sequence[Row]) -> list[Row]:
    """At every point what the guard would take: the least KL on the acceptance text."""
    found = []
    for bits in dict.fromkeys(row["bits"] for row in rows if row["curve"] == "ours"):
        own = [row for row in rows if row["curve"] in OURS and row["bits"] == bits]
        most = max(row["bytes"] for row in own)
        code = max(row["code_bits"] for row in own)
        rivals = [row for row in rows if row["curve"] in UNIFORM and row["bytes"] <= most and row["code_bits"] <= code]
        taken = min([*own, *rivals], key=lambda row: row["acceptance_kl"])
        found.append({**taken, "curve": "ours, guarded", "taken": f"{taken['curve']}", "asked": bits})
    return found


def table(rows: Sequence[Row]) -> list[str]:
    lines = ["| | asked for | code bits | stored bits | bytes of all layers | predicted | KL | SE | perplexity |"]
    lines += ["|---|---|---|---|---|---|---|---|---|"]
    for row in rows:
        predicted = "" if row["predicted"] is None else f"{row['predicted']:.5f}"
        lines.append(
            f"| {row['curve']} | {row['bits']} | {row['code_bits']:.3f} | {row['stored_bits']:.3f} | {row['bytes']:,} | "
            f"{predicted} | {row['kl']:.5f} | {row['kl_se']:.5f} | {row['perplexity']:.3f} |"
        )
    return lines


def steps(rows: Sequence[Row], every: Sequence[Row]) -> list[str]:
    """A curve from many bits to few: against its neighbour, and against the best uniform plan of no more bytes."""
    lines = [
        "| bits | stored | KL | what 0.2 bits fewer cost | best uniform plan of no more bytes | KL of ours minus its |"
    ]
    lines += ["|---|---|---|---|---|---|"]
    for place, row in enumerate(rows):
        step = signed(apart(row, rows[place - 1])) if place else ""
        rival = best_uniform(every, row["bytes"])
        named = f"{rival['curve']} {rival['bits']}: {rival['kl']:.5f}" if rival else "none fits"
        gap = signed(apart(row, rival)) if rival else ""
        bits, taken = row.get("asked", row["bits"]), f" ({row['taken']})" if "taken" in row else ""
        lines.append(f"| {bits}{taken} | {row['stored_bits']:.3f} | {row['kl']:.5f} | {step} | {named} | {gap} |")
    falls = [
        gap for low, high in zip(rows[1:], rows, strict=False) if (gap := apart(low, high))[0] < -SIGNIFICANT * gap[1]
    ]
    verdict = "not " if falls else ""
    lines += ["", f"KL is {verdict}non-increasing over the bits within {SIGNIFICANT} paired standard errors."]
    return lines


def at(rows: Sequence[Row], curve: str, bits: float | str) -> Row | None:
    return next((row for row in rows if row["curve"] == curve and row["bits"] == bits), None)


def two_bits(rows: Sequence[Row]) -> list[str]:
    """Everything at two code bits, and KL minus that of rivals under the same range rule."""
    shown = [row for row in rows if row["code_bits"] <= 2.0 + 1e-9]
    lines = ["| | asked for | stored bits | KL | perplexity | KL of ours minus its | KL of the paper's minus its |"]
    lines += ["|---|---|---|---|---|---|---|"]
    ours, paper = at(rows, "ours", 2.0), at(rows, "paper", 2.0)
    for row in sorted(shown, key=lambda row: row["kl"]):
        gaps = [signed(apart(one, row)) if one and one is not row else "" for one in (ours, paper)]
        lines.append(
            f"| {row['curve']} | {row['bits']} | {row['stored_bits']:.3f} | {row['kl']:.5f} | {row['perplexity']:.3f} | "
            f"{gaps[0]} | {gaps[1]} |"
        )
    return lines


def scales(rows: Sequence[Row]) -> list[str]:
    lines = ["| code bits | with scales minus without | scales again minus without |", "|---|---|---|"]
    for plain in (row for row in rows if row["curve"] == "ours, without scales"):
        cells = []
        for curve in ("ours", "ours, scales again"):
            other = at(rows, curve, plain["bits"])
            cells.append(signed(apart(other, plain)) if other else "")
        lines.append(f"| {plain['bits']} | {cells[0]} | {cells[1]} |")
    return lines


def whole_method(rows: Sequence[Row]) -> list[str]:
    lines = [
        "| bytes of | bytes | KL | best uniform plan of no more bytes, embedding and head at 16 bits | KL minus its | "
    ]
    lines[0] += "taken by the guard | measured / predicted |"
    lines += ["|---|---|---|---|---|---|---|"]
    for text in BUDGETS:
        row = at(rows, "llm-mq", f"bytes of {text}")
        if row is None:
            continue
        rival = best_uniform(rows, row["bytes"] + 4096)
        named = f"{rival['curve']} {rival['bits']}: {rival['kl']:.5f}" if rival else "none fits"
        gap = signed(apart(row, rival)) if rival else ""
        winner = row["guard"]["winner"] if row["guard"] else ""
        ratio = f"{row['kl'] / row['predicted']:.3f}" if row["predicted"] else ""
        lines.append(f"| {text} | {row['bytes']:,} | {row['kl']:.5f} | {named} | {gap} | {winner} | {ratio} |")
    return lines


def report(name: str) -> str:
    record = json.loads((RESULTS / f"curves_{name}.json").read_text())
    rows = record["rows"]
    measured, text, accepted = record["measured"]["scored"], record["calibration"], record["acceptance"]["scored"]
    lines = [
        f"# What plans lose, {name}",
        "",
        f"Made by `curves.py` and `curves_report.py`. KL(original ‖ stored) in nats per token on {measured:,} scored tokens that",
        f"nothing was made with; {text['sequences']} sequences of {text['window']} tokens for calibration and scores,",
        f"{text['awq_tokens'][0]:,} tokens for the first scales, {text['awq_tokens'][1]:,} for AWQ's and for `scales again`,",
        f"{accepted:,} for the guard. Bits are of the blocks' linears; embedding and head stay at 16 bits except in `llm-mq`.",
        "Differences come with paired standard errors over documents.",
    ]
    curves = {
        curve: [row for row in rows if row["curve"] == curve] for curve in ("ours", "ours, without scales", "paper")
    }
    if all(row.get("acceptance_kl") is not None for row in rows):
        curves["ours, guarded"] = guarded(rows)
    lines += ["", "## Whole method at the bytes of uniform plans", "", *whole_method(rows)]
    for curve, own in curves.items():
        if len(own) > 1:
            lines += ["", f"## Curve: {curve}", "", *steps(own, rows)]
    lines += ["", "## At 2.0 code bits", "", *two_bits(rows)]
    lines += ["", "## Scales", "", *scales(rows)]
    lines += ["", "## All rows", "", *table(rows)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    for model in sys.argv[1:]:
        text = report(model)
        (RESULTS / f"curves_{model}.md").write_text(text)
        print(text)
