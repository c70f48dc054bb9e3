"""Operations on stored weights: plain reference kernels, and the modules that call the fastest one at hand."""

from bitbudget.kernels.linear import QuantEmbedding, QuantLinear
from bitbudget.kernels.reference import linear, lookup

__all__ = ["QuantEmbedding", "QuantLinear", "linear", "lookup"]
