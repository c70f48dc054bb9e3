"""Stored weights: choices and their grammar, parts, and the layouts that give them names and bytes in a file."""

from bitbudget.storage.choice import INTEGER_BITS, Activation, Choice, Dense, Outliers, Shape
from bitbudget.storage.counts import Count
from bitbudget.storage.layout import NATIVE, Layout, NativeLayout
from bitbudget.storage.parts import DensePart, OutlierPart, Part
from bitbudget.storage.stored import StoredWeight
from bitbudget.storage.tensors import TensorSpec, index_dtype

__all__ = [
    "INTEGER_BITS",
    "NATIVE",
    "Activation",
    "Choice",
    "Count",
    "Dense",
    "DensePart",
    "Layout",
    "NativeLayout",
    "OutlierPart",
    "Outliers",
    "Part",
    "Shape",
    "StoredWeight",
    "TensorSpec",
    "index_dtype",
]
