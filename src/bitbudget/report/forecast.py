"""The forecast on one page."""

from collections import defaultdict
from typing import Any

from rich.console import Console

from bitbudget.report.sizes import duration, exact_size, size
from bitbudget.report.terminal import new_table, printable, say


def show_forecast(console: Console, model: str, forecast: dict[str, Any]) -> None:
    """Everything that is known before a weight is read. forecast: `pipeline.forecast.Forecast.to_dict()`."""
    now = forecast["now"]
    say(console, f"{model}: {exact_size(now['weights_bytes'])} of weights now", style="bold")
    files = "file" if now["files"] == 1 else "files"
    counts = f"{now['layers']:,} layers in {now['blocks']} blocks, {now['tensors']:,} tensors in {now['files']} {files}"
    say(console, counts + ".")
    console.print()
    _show_choices(console, forecast)
    _show_cache(console, forecast["kv_cache"])
    console.print()
    _show_kept(console, forecast)
    if forecast["planning"]:
        console.print()
        _show_planning(console, forecast)
    console.print()
    _show_stages(console, forecast)


def _show_choices(console: Console, forecast: dict[str, Any]) -> None:
    now = forecast["now"]["weights_bytes"]
    table = new_table("choice", "bits", "weights", "bytes", "files, bytes", "of now")
    for row in forecast["rows"]:
        share = f"{100 * row['weights_bytes'] / now:.1f} %"
        sizes = size(row["weights_bytes"]), f"{row['weights_bytes']:,}", f"{row['disk_bytes']:,}"
        table.add_row(printable(row["choice"]), f"{row['stored_bits']:.2f}", *sizes, share)
    console.print(table)
    if forecast["rows"]:
        first = forecast["rows"][0]
        say(
            console,
            f"The choice is that of the blocks' linears; embedding {first['embedding']}, head {first['head']}. bits: "
            "stored bits a weight, over all layers. Bytes are exact.",
        )
    least, most = forecast["smallest"], forecast["largest"]
    say(
        console,
        f"Reachable: from {size(least['weights_bytes'])} ({least['choice']}, embedding {least['embedding']}, head "
        f"{least['head']}) to {size(most['weights_bytes'])} ({most['choice']}).",
    )


def _show_cache(console: Console, cache: dict[str, Any]) -> None:
    what = f"Key-value cache of {cache['context']:,} tokens in {cache['dtype']}"
    if cache["nbytes"] is None:
        say(console, f"{what}: not known ({cache['unknown']}).")
        return
    groups = ", ".join(_cache_group(group) for group in cache["groups"])
    say(console, f"{what}: {exact_size(cache['nbytes'])}; {groups}.")


def _cache_group(group: dict[str, Any]) -> str:
    attention = "full attention" if group["window"] is None else f"a window of {group['window']:,}"
    return f"{group['blocks']} blocks with {attention}, {group['heads']} heads of {group['head_width']}"


def _show_kept(console: Console, forecast: dict[str, Any]) -> None:
    table = new_table("tensors", "bytes", "stay as they are because", left=0)
    table.columns[2].justify = "left"
    table.columns[2].no_wrap = False
    for entry in forecast["kept"]:
        table.add_row(f"{entry['tensors']:,}", f"{entry['nbytes']:,}", printable(entry["reason"]))
    console.print(table)
    if forecast["fallbacks"]:
        console.print()
        say(console, "Not every layer can take the choice:")
    same: dict[tuple[str, int, str], list[str]] = defaultdict(list)
    for entry in forecast["fallbacks"]:
        reason, _, instead = entry["note"].partition("; ")
        same[entry["first"], entry["layers"], reason].append(instead or f"{entry['choice']} is not taken")
    for (first, layers, reason), instead in same.items():
        more = f" and {layers - 1} more" if layers > 1 else ""
        likewise = f", likewise {len(instead) - 1} other choices" if len(instead) > 1 else ""
        say(console, f"  - {first}{more}: {reason}; {instead[0]}{likewise}")


def _show_planning(console: Console, forecast: dict[str, Any]) -> None:
    table = new_table("stage", "time")
    ends = [(stage["name"], stage["least_seconds"], stage["most_seconds"]) for stage in forecast["planning"]]
    for name, least, most in ends:
        table.add_row(name, _span(least, most))
    table.add_section()
    table.add_row("all", _span(sum(least for _, least, _ in ends), sum(most for _, _, most in ends)))
    say(console, f"Estimated for planning with --effort {forecast['effort']} on {forecast['device']}, before the stages below:")
    console.print(table)


def _span(least: float, most: float) -> str:
    return _time(least) if _time(least) == _time(most) else f"{_time(least)} to {_time(most)}"


def _show_stages(console: Console, forecast: dict[str, Any]) -> None:
    table = new_table("stage", "peak RAM", "device", "disk", "scratch", "time")
    for stage in forecast["stages"]:
        sizes = [stage[name] for name in ("ram_bytes", "device_bytes", "disk_bytes", "scratch_bytes")]
        table.add_row(stage["name"], *(size(value) if value else "-" for value in sizes), _time(stage["seconds"]))
    table.add_section()
    table.add_row("all", size(forecast["peak_ram_bytes"]), "", "", "", _time(forecast["seconds"]))
    say(console, f"Estimated for quantize --choice {forecast['stages_choice']} on {forecast['device']}:")
    console.print(table)


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return "< 1 s" if seconds < 1 else duration(seconds)
