"""How codes are chosen."""

from bitbudget.rounding.fitted import Fitted
from bitbudget.rounding.nearest import fit, fit_all, nearest

__all__ = ["Fitted", "fit", "fit_all", "nearest"]
