"""Numbers as people read them."""

import re

KIB = 1024
UNITS = ("KiB", "MiB", "GiB", "TiB")


def size(nbytes: int) -> str:
    """`4.36 MiB`: in the largest binary unit that gives at least 1, KiB at the least."""
    value = nbytes / KIB
    for unit in UNITS:
        if value < KIB or unit == UNITS[-1]:
            return f"{value:,.2f} {unit}"
        value /= KIB
    raise AssertionError("the last unit always returns")


def exact_size(nbytes: int) -> str:
    """`4.36 MiB (4,574,696 bytes)`."""
    return f"{size(nbytes)} ({nbytes:,} bytes)"


def duration(seconds: float) -> str:
    """`8 s`, `2 min 05 s`, `3 h 20 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def perplexity(value: float) -> str:
    """Four digits behind the point where they matter, two for the large ones."""
    return f"{value:.4f}" if value < 10 else f"{value:,.2f}"


def divergence(value: float, error: float | None) -> str:
    """`0.016023 ± 0.000437` nats; without a standard error where a single document gives none."""
    return f"{value:.6f}" + ("" if error is None else f" ± {error:.6f}")


def parse_size(text: str) -> int | None:
    """Bytes of `5GB`, `512 MiB` or `1000000`; None if it is no size above 0."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?)(i?)B?", text.strip(), re.IGNORECASE)
    if not found or (found[3] and not found[2]):
        return None
    base = KIB if found[3] else 1000
    return int(float(found[1]) * base ** " KMGT".index(found[2].upper() or " ")) or None
