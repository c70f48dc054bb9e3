"""What a plan has to beat: the best uniform plan, and what an experienced hand would do."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from bitbudget.allocation import ScoreTable
from bitbudget.methods.recipe import KEPT, Recipe
from bitbudget.models.source import SourceModel
from bitbudget.pipeline.budgets import DISK, exceeded
from bitbudget.pipeline.offers import Offer
from bitbudget.pipeline.output import PlannedLayer, disk_bytes_of, plan_layer
from bitbudget.pipeline.solving import Question
from bitbudget.storage import Choice

# What attention mixes and what closes the block: llama.cpp's mixes give them more bits, as does every hand recipe since.
SENSITIVE = re.compile(r"(^|\.)(v_proj|down_proj|w2|fc2|value)$")


@dataclass(frozen=True)
class Rival:
    """layers: layer -> choice's text. predicted: by the scores."""

    name: str
    layers: Mapping[str, str]
    predicted: float


class Rivals:
    """Uniform plans and hand recipes over the same offers, with the costs and scores that the solver saw."""

    def __init__(
        self, offers: Sequence[Offer], recipe: Recipe, table: ScoreTable, asked: Question, source: SourceModel
    ) -> None:
        self._offers = offers
        self._recipe = recipe
        self._asked = asked
        self._source = source
        self._blocks = source.block_count
        self._dimensions = table.dimensions
        self._points = {
            (unit.name, next(iter(point.choices.values()))): point for unit in table.units for point in unit.points
        }

    def uniform(self) -> Rival | None:
        """Of one choice for all linears of the blocks and the widest embedding and head that fit, the one that is predicted to
        lose least; None if none fits.
        """
        found = [rival for text in self._recipe.choices if (rival := self._largest(text, {})) is not None]
        return min(found, key=lambda rival: rival.predicted, default=None)

    def hand(self) -> Rival | None:
        """Value and down projections one width up in the first and last eighth of the blocks and every third one between, all
        others at the largest base width that fits; None where a model has no layers of such names, or nothing fits.
        """
        raised = [offer.layer.name for offer in self._offers if self._is_raised(offer)]
        if not raised:
            return None
        for base, above in self._ladder():
            rival = self._largest(base, dict.fromkeys(raised, above))
            if rival is not None:
                return Rival(f"hand recipe {base}, value and down {above} in some blocks", rival.layers, rival.predicted)
        return None

    def _ladder(self) -> Iterator[tuple[str, str]]:
        """(base, one width up) of the choices without outliers in the largest groups, widest first."""
        plain: dict[int, tuple[int, str]] = {}
        for text in self._recipe.choices:
            choice = Choice.parse(text) if text != KEPT else None
            if choice and not choice.outliers and len(choice.dense) == 1:
                grid = choice.dense[0].grid
                known = plain.get(grid.bits)
                if known is None or (grid.group or 0) > known[0]:
                    plain[grid.bits] = (grid.group or 0, text)
        widths = sorted(plain)
        for low, high in reversed(list(zip(widths, widths[1:], strict=False))):
            yield plain[low][1], plain[high][1]

    def _is_raised(self, offer: Offer) -> bool:
        block, eighth = offer.layer.block, max(1, self._blocks // 8)
        if block is None or not SENSITIVE.search(offer.layer.name):
            return False
        return block < eighth or block >= self._blocks - eighth or (block - eighth) % 3 == 2

    def _largest(self, text: str, others: Mapping[str, str]) -> Rival | None:
        """With the widest embedding and head that fit."""
        for table in (KEPT, *reversed(self._recipe.tables)):
            rival = self._rival(text, table, others)
            if rival is not None:
                return rival
        return None

    def _rival(self, text: str, table: str, others: Mapping[str, str]) -> Rival | None:
        layers, points = {}, []
        stored: list[PlannedLayer] = []
        for offer in self._offers:
            wanted = others.get(offer.layer.name, text) if offer.layer.kind == "linear" else table
            planned = plan_layer(offer.layer, None if wanted == KEPT else Choice.parse(wanted))
            point = self._points.get((offer.layer.name, str(planned.choice)))
            if point is None:  # the layer was not offered it: it has only itself to offer
                own = offer.planned[0].choice
                point = self._points[offer.layer.name, str(own)]
                if len(offer.planned) > 1:
                    return None
            found = next(iter(point.choices.values()))
            layers[offer.layer.name] = found
            points.append(point)
            stored.extend(planned for planned in offer.planned if str(planned.choice) == found)
        costs = {
            name: sum(point.cost[place] for point in points) for place, name in enumerate(self._dimensions)
        }
        if self._asked.limit[DISK] is not None:  # files are known to the byte
            costs[DISK] = disk_bytes_of(self._source, stored, self._asked.max_shard_bytes)
        if exceeded(self._asked.limit, costs):
            return None
        return Rival(f"uniform {text}, embedding and head {table}", layers, sum(max(point.score, 0.0) for point in points))
