"""Dominated states, and what completing a state adds, against trying everything."""

from itertools import product

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from bitbudget.allocation.completion import Completion
from bitbudget.allocation.states import best_states


@settings(max_examples=300)
@given(st.integers(1, 2), st.lists(st.tuples(*[st.integers(0, 6)] * 3), max_size=200))
def test_states_that_no_other_one_matches_or_beats(dimensions: int, values: list[tuple[int, int, int]]) -> None:
    rows = sorted(value[2 - dimensions :] for value in values)
    table = np.array(rows, dtype=np.int64).reshape(len(rows), dimensions + 1)
    beaten = [
        any(all(one <= two for one, two in zip(other, row, strict=True)) for other in rows[:place])
        for place, row in enumerate(rows)
    ]
    assert best_states(table[:, :-1], table[:, -1]).tolist() == [not value for value in beaten]


@settings(max_examples=300)
@given(st.data(), st.integers(1, 3), st.sampled_from([1, 10**6, 2**50]))
def test_no_completion_adds_less_than_said(data: st.DataObject, dimensions: int, factor: int) -> None:
    """Plans of later moves within what is left: reduced costs and the price of what stays unused, in exact numbers."""
    multipliers = tuple(data.draw(st.sampled_from([0.0, 0.5, 3.0])) for _ in range(dimensions))
    cost = st.integers(-6, 6).map(lambda value: value * factor)
    move = st.tuples(st.integers(0, 9).map(lambda value: value * factor), st.tuples(*[cost] * dimensions))
    units = data.draw(st.lists(st.lists(move, min_size=1, max_size=3), min_size=1, max_size=4))
    left = data.draw(st.tuples(*[cost] * dimensions))
    flat = [move for unit in units for move in unit]
    completion = Completion(
        np.array([above for above, _ in flat], dtype=np.int64),
        np.array([costs for _, costs in flat], dtype=np.int64),
        np.cumsum([0, *(len(unit) for unit in units[:-1])]),
        multipliers,
    )
    stay = (0, (0,) * dimensions)
    for stage in range(len(units) + 1):
        said = int(completion.least(np.array([left], dtype=np.int64), stage)[0])
        for chosen in product(*([stay, *unit] for unit in units[stage:])):
            spare = [room - sum(costs[place] for _, costs in chosen) for place, room in enumerate(left)]
            if min(spare) >= 0:
                added = sum(above for above, _ in chosen)
                assert said <= added + sum(price * room for price, room in zip(multipliers, spare, strict=True))
