"""What `products.py` recorded, as a table with the ratios that were aimed at, and as a roofline."""

from pathlib import Path
from typing import Any

# The best peer's time over ours, in mode a8, by (tokens, threads) and bits.
AIMS = {
    (1, 1): {2: 1.3, 3: 1.5, 4: 1.25, 8: 1.0},
    (1, 2): {2: 1.3, 3: 1.5, 4: 1.15, 8: 1.0},
    **{(8, threads): {2: 2.5, 3: 8.0, 4: 2.5, 8: 1.2} for threads in (1, 2)},
    **{(512, threads): {2: 2.0, 3: 2.0, 4: 2.0, 8: 1.0} for threads in (1, 2)},
}
THREE_BITS_AGAINST_Q3_K = {
    (1, 1): 2.0,
    (1, 2): 2.1,
}  # in place of the row above where T-MAC's kernel is not beside ours


COLUMNS = (
    "rows × columns", "tokens", "threads", "bits", "ours a8", "ours a16", "best peer", "by", "ratio a8", "aim", "ratio a16",
    "GB/s", "of memory", "of VNNI", "of AMX",
)  # fmt: skip


def table(document: dict[str, Any]) -> str:
    """Markdown: a section for the products by width, one for mixes and outliers, one for those who did not run."""
    machine, cases = document["machine"], document["cases"]
    host = f"{machine['cpu']}, {machine['cores']} cores, {machine['isa']}"
    uniform = [case for case in cases if case["title"] != "composed"]
    composed = [line for case in cases if case["title"] == "composed" for line in _composed(case)]
    absent = {f"{name}: {reason}" for case in cases for name, reason in case["absent"].items()}
    lines = ["# Matrix products on a CPU", "", f"{host}; Python {machine['python']}, torch {machine['torch']}.", ""]
    lines += [
        "Medians, microseconds a product. Ratio: best peer over ours, `a8` and the default `a16`; aim: for `a8`.",
        "",
    ]
    lines += [*_head(COLUMNS), *(_row(case) for case in uniform), "", "## Mixes of widths, and outliers", ""]
    lines += [*_head(("rows × columns", "tokens", "threads", "layer", "µs", "over what the parts take")), *composed, ""]
    lines += [
        "## Every contender",
        "",
        *_head(("rows × columns", "tokens", "threads", "case", "contender", "µs", "GB/s")),
    ]
    lines += [line for case in cases for line in _contenders(case)]
    lines += ["", "Did not run:", "", *(f"- {entry}" for entry in sorted(absent))] if absent else []
    return "\n".join(lines) + "\n"


def _head(columns: tuple[str, ...]) -> tuple[str, str]:
    return f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"


def plot(document: dict[str, Any], path: Path) -> None:
    """Operations a second over operations a byte of weights, with the machine's limits, for each number of threads."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    cases = [case for case in document["cases"] if case["title"] != "composed"]
    threads = sorted({case["threads"] for case in cases})
    figure, axes = plt.subplots(1, len(threads), figsize=(7 * len(threads), 5), squeeze=False, sharey=True)
    for axis, count in zip(axes[0], threads, strict=True):
        mine = [case for case in cases if case["threads"] == count]
        _roof(axis, mine)
        for case in mine:
            _points(axis, case)
        axis.set(
            xscale="log",
            yscale="log",
            xlabel="operations a byte of weights",
            title=f"{count} thread{'s' * (count > 1)}",
        )
    axes[0][0].set_ylabel("giga-operations a second")
    handles = [plt.Line2D([], [], color=colour, marker="s", ls="", label=title) for title, colour in COLOURS.items()]
    marked = {**MARKERS, "best peer": "x"}
    handles += [plt.Line2D([], [], color="black", marker=marker, ls="", label=name) for name, marker in marked.items()]
    axes[0][-1].legend(handles=handles, loc="lower right")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


COLOURS = {"2 bits": "tab:blue", "3 bits": "tab:green", "4 bits": "tab:orange", "8 bits": "tab:red"}


MARKERS = {"ours a8": "o", "ours a16": "^"}


def _points(axis: Any, case: dict[str, Any]) -> None:
    for name, marker in (*MARKERS.items(), (_best_peer(case)[0], "x")):
        if name in case["contenders"]:
            entry = case["contenders"][name]
            place = _operations(case) / entry["nbytes"], _operations(case) / entry["seconds"] / 1e9
            axis.plot(*place, marker, color=COLOURS[case["title"]], ms=6)


def _roof(axis: Any, cases: list[dict[str, Any]]) -> None:
    bandwidth = _limit(cases, "bandwidth")
    if bandwidth is None:
        return
    steps = [2**power for power in range(1, 13)]
    for name, line in (("vnni", "-"), ("amx", "--")):
        peak = _limit(cases, name)
        if peak is not None:
            axis.plot(steps, [min(step * bandwidth, peak) / 1e9 for step in steps], color="grey", lw=1, ls=line)


def _limit(cases: list[dict[str, Any]], name: str) -> float | None:
    """The most that was measured around these cases."""
    found = [limit[name] for case in cases for limit in case["limits"] if limit[name] is not None]
    return max(found, default=None)


def _operations(case: dict[str, Any]) -> float:
    return 2.0 * case["rows"] * case["columns"] * case["tokens"]


def _best_peer(case: dict[str, Any]) -> tuple[str, float]:
    """The fastest of the others and its seconds; infinite without any."""
    peers = {name: entry["seconds"] for name, entry in case["contenders"].items() if not name.startswith("ours")}
    return min(peers.items(), key=lambda peer: peer[1], default=("none", float("inf")))


def _row(case: dict[str, Any]) -> str:
    bits, key = int(case["title"].split()[0]), (case["tokens"], case["threads"])
    eight, sixteen = (case["contenders"][f"ours {kernels}"] for kernels in ("a8", "a16"))
    peer, seconds = _best_peer(case)
    aims = AIMS.get(key, {}) | ({3: THREE_BITS_AGAINST_Q3_K[key]} if key in THREE_BITS_AGAINST_Q3_K else {})
    speed, rate = eight["nbytes"] / eight["seconds"], _operations(case) / eight["seconds"]
    shares = (_share(speed, case, "bandwidth"), _share(rate, case, "vnni"), _share(rate, case, "amx"))
    cells = [
        f"{case['rows']} × {case['columns']}",
        case["tokens"],
        case["threads"],
        bits,
        _micro(eight),
        _micro(sixteen),
    ]
    cells += [
        f"{1e6 * seconds:.0f}" if seconds < 1e9 else "",
        peer,
        f"{seconds / eight['seconds']:.2f}",
        aims.get(bits, ""),
    ]
    cells += [f"{seconds / sixteen['seconds']:.2f}", f"{speed / 1e9:.1f}", *shares]
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def _share(value: float, case: dict[str, Any], limit: str) -> str:
    most = _limit([case], limit)
    return f"{100 * value / most:.0f} %" if most else ""


def _micro(entry: dict[str, Any]) -> str:
    return f"{1e6 * entry['seconds']:.0f}"


def _composed(case: dict[str, Any]) -> list[str]:
    found = case["contenders"]
    eight, four = found["int8"]["seconds"], found["int4"]["seconds"]
    parts = {
        "int8 for 10 % of rows, int4": 0.1 * eight + 0.9 * four,
        "int4 with 0.5 % outliers": four,
        "int2 with 0.5 % outliers": found["int2"]["seconds"],
    }
    start = f"| {case['rows']} × {case['columns']} | {case['tokens']} | {case['threads']} |"
    over = {name: entry["seconds"] / parts.get(name, entry["seconds"]) for name, entry in found.items()}
    return [f"{start} {name} | {_micro(entry)} | {over[name]:.2f} |" for name, entry in found.items()]


def _contenders(case: dict[str, Any]) -> list[str]:
    start = f"| {case['rows']} × {case['columns']} | {case['tokens']} | {case['threads']} | {case['title']} |"
    return [
        f"{start} {name} | {_micro(entry)} | {entry['nbytes'] / entry['seconds'] / 1e9:.1f} |"
        for name, entry in case["contenders"].items()
    ]
