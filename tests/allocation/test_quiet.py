"""HiGHS prints from C++ on some problems; nothing of that may reach a command's standard output."""

import random

import pytest

from bitbudget.allocation import Infeasible, Point, Unit, solve


def awkward(seed: int) -> tuple[list[Unit], dict[str, int]]:
    """Few units, costs of zero, losses over nine orders of magnitude, two or three budgets."""
    draw = random.Random(seed)
    dimensions = draw.choice([2, 3])
    units = [
        Unit(
            f"unit{number}",
            tuple(
                Point(
                    {f"layer{number}": f"choice{place}"},
                    tuple(draw.randint(0, 12) * draw.choice([1, 7, 1024]) for _ in range(dimensions)),
                    draw.choice([0.0, 10 ** draw.uniform(-9, 0), 1.0]),
                )
                for place in range(draw.randint(1, 4))
            ),
        )
        for number in range(draw.randint(1, 6))
    ]
    most = [sum(max(point.cost[place] for point in unit.points) for unit in units) for place in range(dimensions)]
    return units, {f"cost{place}": int(draw.uniform(0.1, 1) * total) for place, total in enumerate(most)}


def test_solving_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    solved = 0
    for seed in range(400):
        try:
            solve(*awkward(seed))
            solved += 1
        except Infeasible:
            continue
    assert solved > 100
    assert capfd.readouterr().out == ""
