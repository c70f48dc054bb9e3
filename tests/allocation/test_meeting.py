"""Sets of moves, pairs of them, and what they say about all plans within a gap, against trying everything."""

import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from allocation.cases import Drawn, best, built, labels, questions, unit
from bitbudget.allocation import Effort, Infeasible, ScoreTable, Settings, Unit, solve
from bitbudget.allocation.bound import bound
from bitbudget.allocation.meeting import Meeting
from bitbudget.allocation.model import Model, least_loss_model
from bitbudget.allocation.moves import Moves
from bitbudget.allocation.pairs import Pairs
from bitbudget.allocation.subsets import Subsets, counted

FACTORS = st.sampled_from([1, 10**6, 2**50])


def moves_of(units: list[list[tuple[int, tuple[int, ...]]]]) -> Moves:
    """Moves of (reduced cost, costs) by unit; as loss they have their reduced cost less the sum of their costs."""
    flat = [move for unit in units for move in sorted(unit)]
    above = np.array([above for above, _ in flat], dtype=np.int64)
    cost = np.array([cost for _, cost in flat], dtype=np.int64)
    rows = np.arange(len(flat))
    return Moves(rows, rows, above, cost, above - cost.sum(axis=1), np.cumsum([0, *(len(unit) for unit in units[:-1])]))


@settings(max_examples=200)
@given(st.data(), st.integers(1, 3), FACTORS)
def test_all_sets_within_a_gap_are_listed_once(data: st.DataObject, dimensions: int, factor: int) -> None:
    cost = st.integers(-6, 6).map(lambda value: value * factor)
    move = st.tuples(st.integers(0, 9).map(lambda value: value * factor), st.tuples(*[cost] * dimensions))
    units = data.draw(st.lists(st.lists(move, min_size=1, max_size=3), min_size=1, max_size=4))
    gap = data.draw(st.integers(0, 12)) * factor
    moves = moves_of(units)
    places = range(len(units))
    choices = [[(), *((move,) for move in moves.own(unit))] for unit in places]
    sets = [tuple(move for own in choice for move in own) for choice in product(*choices)]
    wanted = [chosen for chosen in sets if moves.above[list(chosen)].sum() <= gap]
    count = counted(moves, places, gap)
    assert count[-1] >= len(wanted)
    subsets = Subsets(moves, places, gap, int(count[-1]))
    listed = [tuple(sorted(subsets.moves(place))) for place in range(subsets.count)]
    assert sorted(listed) == sorted(wanted)
    for place, chosen in enumerate(listed):
        rows = list(chosen)
        assert subsets.above[place] == moves.above[rows].sum()
        assert subsets.loss[place] == moves.loss[rows].sum()
        assert (subsets.cost[place] == moves.cost[rows].sum(axis=0)).all()


@settings(max_examples=300)
@given(st.data(), st.integers(1, 3), FACTORS)
def test_all_pairs_within_the_windows_are_met_once(data: st.DataObject, dimensions: int, factor: int) -> None:
    vector = st.tuples(*[st.integers(-40, 40).map(lambda value: value * factor)] * dimensions)
    asked, offered = (data.draw(st.lists(vector, max_size=12)) for _ in range(2))
    left = data.draw(vector)
    windows = data.draw(st.lists(st.sampled_from([0, 1, 7 * factor, 2**62]), min_size=dimensions, max_size=dimensions))
    pairs = Pairs(*(_array(rows, dimensions) for rows in (asked, offered)), np.array(left, dtype=np.int64), windows)
    met = [(int(one), int(other)) for asking, partners in pairs for one, other in zip(asking, partners, strict=True)]
    assert len(met) == len(set(met)) == pairs.count
    for one, other in product(range(len(asked)), range(len(offered))):
        unused = [room - asked[one][place] - offered[other][place] for place, room in enumerate(left)]
        if all(0 <= amount <= window for amount, window in zip(unused, windows, strict=True)):
            assert (one, other) in met


def _array(rows: list[tuple[int, ...]], dimensions: int) -> np.ndarray:
    return np.array(rows, dtype=np.int64).reshape(len(rows), dimensions)


def model_of(question: Drawn) -> Model:
    units, budgets = built(question)
    losses = [[point.score for point in entry.points] for entry in units]
    return least_loss_model(units, losses, list(range(len(budgets))), list(budgets.values()))


@settings(max_examples=300)
@given(questions(), st.sampled_from([1, 2, 4, 2**20]), st.sampled_from([(), (1,), (1, 3)]))
def test_what_a_meeting_says_holds(question: Drawn, sets: int, trials: tuple[int, ...]) -> None:
    """Whatever its limits: the bound is valid, the plan within the limits, and `complete` means that it is the first."""
    if best(*built(question)) is None:
        return
    model = model_of(question)
    problem = model.problem
    plans = [np.array(rows) for rows in product(*np.split(np.arange(len(problem.unit)), problem.first[1:]))]
    inside = sorted(
        (problem.value(plan), *problem.cost[plan].sum(axis=0).tolist()) for plan in plans if problem.feasible(plan)
    )
    known = inside[len(inside) // 2][0]
    multipliers = model.relaxed.multipliers if model.relaxed is not None else (0.0,) * problem.dimensions
    reached = Meeting(bound(problem, multipliers), known, model.tie).run(sets, trials)
    assert reached.bound <= inside[0][0] <= reached.value <= known
    if reached.rows is not None:
        assert problem.feasible(reached.rows)
        assert problem.value(reached.rows) == reached.value
    assert reached.complete or sets < 2**20
    if reached.complete:
        assert reached.rows is not None
        assert (reached.value, *problem.cost[reached.rows].sum(axis=0).tolist()) == inside[0]


# Two plans of equal loss and costs, whose loss is the bound's.
@example(
    (
        [[((0, 1, 0), 0.375), ((0, 2, 0), 0.125), ((0, 3, 0), 0.0)], [((0, 2, 0), 0.125), ((0, 1, 0), 0.375)]],
        {"bytes": 0, "nanoseconds": 3, "rows": 0},
    )
)
@settings(max_examples=80)
@given(questions())
def test_every_way_to_the_optimum_names_the_same_plan(question: Drawn) -> None:
    units, budgets = built(question)
    try:
        wanted = labels(solve(units, budgets).points)
    except Infeasible:
        return
    for effort in (Effort(sets=0, nodes=0, branches=0), Effort(states=1, nodes=0, branches=0), Effort(1, 0, 500, 1)):
        assert labels(solve(units, budgets, Settings(effort=effort)).points) == wanted


def decoder(units: int, points: int, seed: int) -> list[Unit]:
    """Units of a few shapes that share a palette of bits; bytes and kernel times by choice, losses fourfold per bit."""
    draw = np.random.default_rng(seed)
    bits = np.sort(draw.uniform(2.0, 8.0, points))
    pace = np.exp(draw.normal(0.0, 0.25, points))
    made = []
    for number in range(units):
        size = (16, 4, 4, 16, 56, 56, 56)[number % 7] * 2**20
        sensitivity = np.exp(draw.normal(-7.0, 1.5))
        losses = sensitivity * 4.0**-bits * np.exp(draw.normal(0.0, 0.1, points))
        values = [
            ((int(size * width / 8) // 32 * 32, int(size * (0.6 * width + 2) * slow / 8e3)), float(loss))
            for width, slow, loss in zip(bits, pace, losses, strict=True)
        ]
        made.append(unit(f"unit{number:03d}", values))
    return made


def fifths(units: list[Unit]) -> dict[str, int]:
    """Budgets a fifth of the way from the least totals to the largest."""
    spans = [
        [(min(own), max(own)) for own in zip(*(point.cost for point in entry.points), strict=True)] for entry in units
    ]
    ends = [tuple(map(sum, zip(*column, strict=True))) for column in zip(*spans, strict=True)]
    return {
        name: least + (most - least) // 5 for name, (least, most) in zip(("bytes", "nanoseconds"), ends, strict=True)
    }


@pytest.mark.parametrize("seed", range(4))
def test_hundreds_of_units_under_two_budgets_are_proven(seed: int) -> None:
    units = decoder(300, 30, seed)
    solution = solve(units, fifths(units))
    assert solution.optimal
    assert not solution.work.branched


def test_the_number_of_threads_changes_no_byte_of_a_plan(tmp_path: Path) -> None:
    units = decoder(300, 30, 3)
    ScoreTable(("bytes", "nanoseconds"), tuple(units)).save(tmp_path / "scores.npz")
    limits = [argument for name, limit in fifths(units).items() for argument in ("--budget", f"{name}={limit}")]
    for threads in ("1", "2"):
        command = [sys.executable, "-m", "bitbudget", "solve", "scores.npz", *limits, "-o", f"plan{threads}"]
        variables = os.environ | {f"{name}_NUM_THREADS": threads for name in ("OMP", "OPENBLAS", "MKL")}
        subprocess.run(command, cwd=tmp_path, env=variables, check=True, capture_output=True)
    assert (tmp_path / "plan1").read_bytes() == (tmp_path / "plan2").read_bytes()
