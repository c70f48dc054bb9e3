"""Counts inside a choice: an exact number, or a share in percent that a shape turns into one."""

import re
from dataclasses import dataclass
from decimal import Decimal


@dataclass(frozen=True)
class Count:
    """`value` things, or `value` percent of them."""

    value: Decimal
    percent: bool

    def of(self, total: int) -> int:
        """The number out of `total`; shares round half up, in exact arithmetic. Never above `total`."""
        exact = self.value * total / 100 if self.percent else self.value
        return min(total, int(exact + Decimal("0.5")))

    def __str__(self) -> str:
        digits = f"{self.value:f}"
        digits = digits.rstrip("0").rstrip(".") if "." in digits else digits
        return f"{digits}%" if self.percent else digits

    @classmethod
    def parse(cls, text: str) -> "Count | None":
        """`410`, `0.5%`; None for anything else, a share of 0 % or above 100 %."""
        found = re.fullmatch(r"([0-9]{1,9})|([0-9]{1,3}(?:[.][0-9]{1,6})?)%", text)
        if not found:
            return None
        value = Decimal(found[1] or found[2])
        if value <= 0 or (found[2] and value > 100):
            return None
        return cls(value.normalize(), percent=bool(found[2]))
