"""A recipe: what a method offers the solver, how it scores it, and what it does to the model before."""

from dataclasses import dataclass
from typing import Literal

Labels = Literal["sampled", "text"]


@dataclass(frozen=True)
class Recipe:
    """choices: texts of the choices for the blocks' linears; tables: for embedding and head (they may always stay 16-bit).

    estimator: one of `scoring.ESTIMATORS`. labels: what the loss is taken against, tokens drawn from the model or the text's
    own. scaling: whether inputs are scaled first (AWQ), searched at the choice `reference`.
    """

    method: str
    choices: tuple[str, ...]
    tables: tuple[str, ...]
    estimator: str
    labels: Labels
    scaling: bool
    reference: str
