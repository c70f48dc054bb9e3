"""Operations on stored weights: plain reference kernels, CPU kernels, and the modules that call them."""

from bitbudget.kernels.extension import best_isa, supported_isas
from bitbudget.kernels.linear import KERNELS, QuantEmbedding, QuantLinear, chosen_kernels, packs, use_kernels
from bitbudget.kernels.reference import linear, lookup

__all__ = [
    "KERNELS",
    "QuantEmbedding",
    "QuantLinear",
    "best_isa",
    "chosen_kernels",
    "linear",
    "lookup",
    "packs",
    "supported_isas",
    "use_kernels",
]
