"""From a tensor of the source to what is stored: scales folded in, then rounded by its choice with its input's Gram matrix."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bitbudget.calibration.gram import GroupGram
from bitbudget.models.source import SourceModel
from bitbudget.pipeline.calibrate import Calibration
from bitbudget.pipeline.output import PlannedLayer
from bitbudget.rounding import Fitted, fit
from bitbudget.storage import StoredWeight
from bitbudget.transforms.fold import Fold


@dataclass(frozen=True)
class Preparation:
    """What a plan does to a tensor before and while it is rounded. Without a calibration: nothing."""

    calibration: Calibration | None = None
    fold: Fold = field(default_factory=Fold.none)

    def kept(self, name: str, tensor: Tensor) -> Tensor:
        """A tensor that stays in its dtype; the same object if no scale touches it."""
        return self.fold.apply(name, tensor).to(tensor.dtype)

    def stored(self, planned: PlannedLayer, tensor: Tensor) -> StoredWeight:
        """A layer by its choice. tensor: as in the file."""
        return self.fitted(planned, tensor).stored()

    def fitted(self, planned: PlannedLayer, tensor: Tensor) -> Fitted:
        """The same before its codes are written."""
        weight = self.fold.apply(planned.layer.tensor, tensor)
        weight = weight.T if planned.layer.transposed else weight
        return fit(weight, planned.choice, self._gram(planned))

    def _gram(self, planned: PlannedLayer) -> GroupGram | None:
        searched = any(part.grid.range == "clip" for part in planned.choice.dense)
        return self.calibration.gram(planned.layer, self.fold) if self.calibration and searched else None


class PlannedWeights:
    """Parameters as a plan would store them, made when asked for: `models.weights.Weights` for a model not written yet."""

    def __init__(
        self,
        source: SourceModel,
        planned: Mapping[str, PlannedLayer],
        preparation: Preparation,
        tables: dict[str, Fitted],
    ) -> None:
        """planned: by tensor name. tables: fitted embeddings by choice, shared between the plans of one comparison."""
        self._source = source
        self._planned = planned
        self._preparation = preparation
        self._tables = tables

    def tensor(self, name: str, dtype: torch.dtype) -> Tensor:
        """The whole tensor, decoded, oriented as in the file."""
        planned = self._planned.get(name)
        tensor = self._source.checkpoint.read(name)
        if planned is None or planned.choice.kept:
            return self._preparation.kept(name, tensor).to(dtype)
        decoded = self._fitted(planned, tensor).decoded(dtype)
        return decoded.T if planned.layer.transposed else decoded

    def rows(self, name: str, ids: Int[Tensor, " n"]) -> Float[Tensor, "n width"]:
        """Rows of a table."""
        planned = self._planned.get(name)
        if planned is None or planned.choice.kept:
            return self._source.checkpoint.read_rows(name, ids)
        return self._fitted(planned, None).values(ids.cpu())

    def _fitted(self, planned: PlannedLayer, tensor: Tensor | None) -> Fitted:
        key = f"{planned.layer.name} {planned.choice}"
        if key in self._tables:
            return self._tables[key]
        if tensor is None:
            others = (made.weight for name, made in self._tables.items() if name.startswith(f"{planned.layer.name} "))
            tensor = next(others, None)
        if tensor is None:
            tensor = self._source.checkpoint.read(planned.layer.tensor)
        made = self._preparation.fitted(planned, tensor)
        if planned.layer.kind in ("embedding", "tied"):  # asked again for every sequence
            self._tables[key] = made
        return made
