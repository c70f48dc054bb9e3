"""Random questions of the kinds that allocators meet, from a seed."""

from dataclasses import dataclass

import numpy as np

from bitbudget.allocation import Point, Unit

DIMENSIONS = ("bytes", "nanoseconds")
SHAPES = (
    4096 * 4096,
    1024 * 4096,
    1024 * 4096,
    4096 * 4096,
    14336 * 4096,
    14336 * 4096,
    14336 * 4096,
)  # a block's linears


@dataclass(frozen=True)
class Question:
    """Units, and the least and largest total of every dimension."""

    name: str
    units: list[Unit]
    least: tuple[int, ...]
    most: tuple[int, ...]

    def budgets(self, share: float) -> dict[str, int]:
        """Budgets a share of the way from the least total to the largest, in every dimension."""
        spans = zip(DIMENSIONS, self.least, self.most, strict=False)
        return {name: least + int((most - least) * share) for name, least, most in spans}


def free(units: int, points: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every unit has its own size, bits and kernel times; losses fall fourfold per bit, give or take a third."""
    draw = np.random.default_rng(seed)
    bits = np.sort(draw.uniform(1.5, 9.0, (units, points)), axis=1)
    size = np.exp(draw.normal(0.0, 1.0, (units, 1))) * 4e6
    loss = np.exp(draw.normal(0.0, 2.0, (units, 1))) * 1e-3 * 4.0**-bits * np.exp(draw.normal(0.0, 0.3, bits.shape))
    times = size * (0.6 * bits + 2.0) / 8e3 * np.exp(draw.normal(0.0, 0.25, bits.shape))
    return np.floor(size * bits / 8), np.floor(times), loss


def model(units: int, points: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The linears of a decoder with one palette for all, so that costs repeat; kernel times by choice."""
    draw = np.random.default_rng(seed)
    bits = np.sort(np.concatenate([[2, 3, 4, 5, 6, 8], draw.uniform(2.0, 8.0, points - 6).round(2)]))[None, :]
    size = np.array(SHAPES)[np.arange(units) % len(SHAPES)][:, None]
    loss = (
        np.exp(draw.normal(0.0, 1.5, (units, 1))) * 1e-3 * 4.0**-bits * np.exp(draw.normal(0.0, 0.1, (units, points)))
    )
    times = size * (0.6 * bits + 2.0) / 8e3 * np.exp(draw.normal(0.0, 0.25, (1, points)))
    return np.floor(size * (bits + 0.25) / 8) // 32 * 32, np.floor(times), loss


def wild(units: int, points: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Costs uniform, scores log-uniform over 1e-9 … 1, nothing related to anything."""
    draw = np.random.default_rng(seed)
    costs = [draw.integers(1, 10**6, (units, points)).astype(float) for _ in DIMENSIONS]
    return costs[0], costs[1], 10.0 ** draw.uniform(-9.0, 0.0, (units, points))


KINDS = {"free": free, "model": model, "wild": wild}


def question(kind: str, units: int, points: int, dimensions: int, seed: int) -> Question:
    """A question with the first one or two of bytes and nanoseconds as costs."""
    *costs, loss = KINDS[kind](units, points, seed)
    table = np.stack(costs[:dimensions], axis=2).astype(np.int64).tolist()
    made = [
        Unit(
            f"layer{number:05d}",
            tuple(
                Point({f"layer{number:05d}": f"choice{place}"}, tuple(cost), score)
                for place, (cost, score) in enumerate(zip(table[number], loss[number].tolist(), strict=True))
            ),
        )
        for number in range(units)
    ]
    least = tuple(sum(min(point.cost[place] for point in unit.points) for unit in made) for place in range(dimensions))
    most = tuple(sum(max(point.cost[place] for point in unit.points) for unit in made) for place in range(dimensions))
    return Question(f"{kind}, {units} x {points}, {dimensions} budgets, seed {seed}", made, least, most)
