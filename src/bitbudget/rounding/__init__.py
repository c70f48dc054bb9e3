"""How codes are chosen."""

from bitbudget.rounding.nearest import nearest

__all__ = ["nearest"]
