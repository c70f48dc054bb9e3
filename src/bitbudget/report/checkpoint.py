"""A stored checkpoint on one page: what quantize says at its end and what inspect shows."""

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from rich.console import Console

from bitbudget.pipeline.record import RECORD_NAME
from bitbudget.report.bits import show_bits
from bitbudget.report.drawing import bits_text, role, stored_bits
from bitbudget.report.measurement import show_verification
from bitbudget.report.sizes import exact_size
from bitbudget.report.terminal import new_table, printable, say

Layers = dict[str, dict[str, Any]]


def quantized(folder: Path, record: dict[str, Any]) -> dict[str, Any]:
    """What `quantize --json` prints: the totals; every layer and hash stands in the record itself."""
    plan, layers = record["output"], record["output"]["layers"]
    totals = ("weights_bytes", "disk_bytes", "stored_bits", "code_bits", "settings")
    choices = Counter((entry["kind"], entry["choice"]) for entry in layers.values())
    return {
        "folder": str(folder),
        "record": str(folder / RECORD_NAME),
        **{name: plan[name] for name in totals},
        "layers": [{"kind": kind, "choice": choice, "count": count} for (kind, choice), count in choices.items()],
        "notes": {name: entry["note"] for name, entry in layers.items() if entry.get("note")},
        "verification": record.get("verification"),
    }


def show_quantized(console: Console, folder: Path, record: dict[str, Any]) -> None:
    """What `quantize` made."""
    show_totals(console, folder, record)
    console.print()
    show_layers(console, record["output"]["layers"])
    show_notes(console, record["output"]["layers"])
    console.print()
    show_verification(console, record.get("verification"))


def show_inspection(console: Console, folder: Path, record: dict[str, Any], every_layer: bool) -> None:
    """Everything that bitbudget.json tells of a checkpoint."""
    layers = record["output"]["layers"]
    show_totals(console, folder, record)
    console.print()
    show_layers(console, layers, every_layer)
    show_notes(console, layers)
    console.print()
    show_bits(console, layers)
    console.print()
    _show_kept(console, record["output"]["kept"])
    console.print()
    _show_files(console, folder, record)
    console.print()
    show_verification(console, record.get("verification"))
    console.print()
    _show_provenance(console, record)


def show_totals(console: Console, folder: Path, record: dict[str, Any]) -> None:
    """Name, bytes and bits."""
    plan = record["output"]
    say(console, f"{folder}: {record['source']['name']}, {plan['settings']['method']}", style="bold")
    table = new_table("", "", left=2)
    table.show_header = False
    table.add_row("weights", exact_size(plan["weights_bytes"]))
    table.add_row("weight files", exact_size(plan["disk_bytes"]))
    table.add_row("stored bits", f"{plan['stored_bits']:.3f} a weight, over all layers")
    table.add_row("code bits", f"{plan['code_bits']:.3f} a weight, in the blocks' linears")
    console.print(table)


def show_layers(console: Console, layers: Layers, every_layer: bool = False) -> None:
    """Layers with choice and bytes; the same layer of all blocks is one row (`*`) unless every layer is asked for."""
    rows: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    blocks = "" if every_layer else path_of_blocks(layers)
    for name, entry in layers.items():
        shown = name if every_layer else role(name, entry).removeprefix(blocks)
        rows[shown, entry["choice"]].append(entry)
    table = new_table("layer", "choice", "count", "bits", "bytes", left=2)
    for (name, choice), entries in rows.items():
        nbytes = sum(entry["bytes"] for entry in entries)
        table.add_row(
            printable(name), printable(choice), str(len(entries)), bits_text(stored_bits(entries)), f"{nbytes:,}"
        )
    table.add_section()
    total = sum(entry["bytes"] for entry in layers.values())
    table.add_row("all layers", "", str(len(layers)), bits_text(stored_bits(layers.values())), f"{total:,}")
    console.print(table)
    if blocks:
        say(console, f"* is a block: {blocks}0, {blocks}1 and so on.")


def path_of_blocks(layers: Layers) -> str:
    """What stands before the star of every layer of a block, such as `model.layers.`; empty if that is not one path."""
    paths = {role(name, entry).partition("*")[0] for name, entry in layers.items() if entry["block"] is not None}
    return paths.pop() if len(paths) == 1 else ""


def show_notes(console: Console, layers: Layers) -> None:
    """Layers that could not take the choice asked for; the same reason in many blocks is told once."""
    notes = Counter((role(name, entry), entry["note"]) for name, entry in layers.items() if entry.get("note"))
    if notes:
        console.print()
        say(console, "Not the choice that was asked for:")
    for (name, note), count in notes.items():
        times = f" ({count} layers)" if count > 1 else ""
        say(console, f"  - {name}{times}: {note}")


def _show_kept(console: Console, kept: dict[str, str]) -> None:
    examples: dict[str, list[str]] = defaultdict(list)
    for name, reason in kept.items():
        examples[reason].append(name)
    say(console, f"Kept as they were: {len(kept)} tensors")
    for reason, names in examples.items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        say(console, f"  - {names[0]}{more}: {reason}")


def _show_files(console: Console, folder: Path, record: dict[str, Any]) -> None:
    table = new_table("file", "bytes")
    for name, entry in record["output"]["files"].items():
        table.add_row(printable(name), f"{entry['bytes']:,}" + _difference(folder / name, entry["bytes"]))
    console.print(table)


def _difference(path: Path, planned: int) -> str:
    if not path.is_file():
        return " (missing)"
    found = path.stat().st_size
    return "" if found == planned else f" (found {found:,})"


def _show_provenance(console: Console, record: dict[str, Any]) -> None:
    versions = ", ".join(f"{name} {number}" for name, number in record.get("versions", {}).items())
    say(console, f"Made with {versions}; format version {record.get('format_version')}.")
    say(console, f"Source: {record['source']['name']} (config.json sha256 {record['source']['config_sha256']}).")
    say(console, f"Text: {record['text']['name']} (sha256 {record['text']['sha256']}).")
    others = record.get("other_files", {"copied": {}, "left_out": {}})
    say(console, f"Files copied from the source: {', '.join(others['copied']) or 'none'}.")
    if others["left_out"]:
        say(console, "Not copied:")
    for name, reason in others["left_out"].items():
        say(console, f"  - {name}: {reason}")
