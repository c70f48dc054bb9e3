"""A recipe: what a method offers the solver, how it scores it, and what it does to the model before."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Labels = Literal["sampled", "text"]
Order = Literal["keep", "raise"]
KEPT = "16bit"  # in place of a choice's text: as it is


@dataclass(frozen=True)
class Recipe:
    """choices: texts of the choices for the blocks' linears; tables: for embedding and head (they may always stay 16-bit).

    estimator: one of `scoring.ESTIMATORS`. labels: what the loss is taken against, tokens drawn from the model or the text's
    own. scaling: whether inputs are scaled first (AWQ), searched at the choice `reference`. order: what the solver does with a
    score that is larger than that of a cheaper choice, "keep" it or "raise" the cheaper one's (`allocation.Objective`).
    """

    method: str
    choices: tuple[str, ...]
    tables: tuple[str, ...]
    estimator: str
    labels: Labels
    scaling: bool
    reference: str
    order: Order = "keep"

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> "Recipe":
        """From JSON values, as a plan's settings hold them."""
        return cls(**{**document, "choices": tuple(document["choices"]), "tables": tuple(document["tables"])})
