"""How much to measure before a plan is trusted."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from bitbudget.errors import InputError

WINDOW = 512  # tokens of a calibration sequence
SCRATCH_BYTES = 32 << 30  # hidden states may take so much of the disk, if nothing else is said


@dataclass(frozen=True)
class Effort:
    """first, most: calibration sequences at the start and at the most; they double until two halves agree on the plan.

    scaling_tokens: of AWQ's search; scaling_grid: exponents that it tries. guard_tokens: of the acceptance text. again: whether
    scales are searched once more at the chosen widths.
    """

    name: str
    first: int = 16
    most: int = 16
    scaling_tokens: int = 1024
    scaling_grid: int = 20
    guard_tokens: int = 4096
    again: bool = False


EFFORTS: Mapping[str, Effort] = MappingProxyType({
    "fast": Effort("fast", scaling_grid=10),
    "normal": Effort("normal", most=128, scaling_tokens=2048, guard_tokens=8192, again=True),
    "best": Effort("best", first=128, most=128, scaling_tokens=8192, guard_tokens=32768, again=True),
})  # fmt: skip


def effort_of(name: str) -> Effort:
    """The effort called so. Raises InputError for any other word."""
    if name not in EFFORTS:
        raise InputError(f"There is no effort called {name!r}. Write one of {', '.join(EFFORTS)}.")
    return EFFORTS[name]
