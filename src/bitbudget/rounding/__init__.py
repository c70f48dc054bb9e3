"""How codes are chosen."""

from bitbudget.rounding.fitted import Fitted
from bitbudget.rounding.nearest import fit, nearest

__all__ = ["Fitted", "fit", "nearest"]
