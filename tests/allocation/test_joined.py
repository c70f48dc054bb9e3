"""Tied layers and fusion: q, k and v apart or as one kernel."""

from hypothesis import given, settings

from allocation.cases import Drawn, best, built, close, questions
from bitbudget.allocation import Point, Unit, alternatives, joined, solve


@settings(max_examples=200)
@given(questions(dimensions=2, most_units=3))
def test_joining_units_changes_no_optimum(drawn: Drawn) -> None:
    units, budgets = built(drawn)
    wanted = best(units, budgets)
    one = joined("all", units)
    found = best([one], budgets)
    assert (found is None) == (wanted is None)
    if found is not None and wanted is not None:
        assert close(found[0], wanted[0])
        assert close(solve([one], budgets).loss, wanted[0])


def test_a_fused_kernel_is_a_point() -> None:
    """Fused, q and k share a choice and take less time than apart; the time budget decides."""
    apart = [
        Unit(name, (Point({name: "int3"}, (3, 7), 2.0), Point({name: "int4"}, (4, 9), 1.0))) for name in ("q", "k")
    ]
    both = {choice: dict.fromkeys(("q", "k"), choice) for choice in ("int3", "int4")}
    fused = Unit("qk", (Point(both["int3"], (6, 9), 4.0), Point(both["int4"], (8, 12), 2.0)))
    attention = alternatives("qk", [joined("qk", apart), fused])
    assert solve([attention], {"bytes": 8, "nanoseconds": 18}).costs["nanoseconds"] == 12
    assert solve([attention], {"bytes": 7, "nanoseconds": 18}).loss == 3.0
    assert solve([attention], {"bytes": 7, "nanoseconds": 12}).points["qk"].label == "int3"
