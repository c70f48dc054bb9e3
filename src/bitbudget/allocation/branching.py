"""HiGHS on what reduced costs leave open. Its plan is a proposal that the caller checks in integers; its bound is not used.

HiGHS prunes by absolute tolerances, so losses are counted in ten-thousandths of the open gap or finer, from the base plan.
It stops after a number of nodes, never after a time: a time limit would give every machine its own answer.
"""

import numpy as np
from jaxtyping import Float64, Int64
from numpy import ndarray

from bitbudget.allocation.bound import Bound
from bitbudget.allocation.highs import silent
from bitbudget.allocation.problem import Problem

GAP_UNITS = 1e5


def branched(bound: Bound, best: int, node_limit: int) -> Int64[ndarray, "units"] | None:
    """The best plan HiGHS finds among the points that may still improve on `best`, None where it finds none.

    It need not lie within the limits by the last unit of cost.
    """
    # Imported late: most problems do without.
    from scipy.optimize import Bounds, LinearConstraint, milp  # type: ignore[import-untyped]

    problem = bound.problem
    rows = np.flatnonzero(bound.within(best - bound.value))
    open_units = np.bincount(problem.unit[rows], minlength=problem.units) > 1
    rows = rows[open_units[problem.unit[rows]]]
    if not len(rows):
        return None
    base = bound.base[problem.unit[rows]]
    loss = (problem.objective[rows] - problem.objective[base]) * (GAP_UNITS / max(best - bound.value, 1))
    one_each = _one_of_each(problem, rows)
    with silent():
        answer = milp(
            loss,
            integrality=np.ones(len(rows)),
            bounds=Bounds(0, 1),
            constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(*_rows_of_costs(bound, rows))],
            options={"node_limit": node_limit, "mip_rel_gap": 0.0},
        )
    if answer.x is None:
        return None
    plan = bound.base.copy()
    order = np.lexsort((-answer.x, problem.unit[rows]))
    chosen = rows[order][np.diff(problem.unit[rows][order], prepend=-1) != 0]
    plan[problem.unit[chosen]] = chosen
    return plan


def _one_of_each(problem: Problem, rows: Int64[ndarray, "rows"]) -> object:
    from scipy.sparse import csr_array  # type: ignore[import-untyped]

    places = np.unique(problem.unit[rows], return_inverse=True)[1]
    return csr_array((np.ones(len(rows)), (places, np.arange(len(rows)))))


def _rows_of_costs(
    bound: Bound, rows: Int64[ndarray, "rows"]
) -> tuple[Float64[ndarray, "dimensions rows"], float, Float64[ndarray, "dimensions"]]:
    """Costs relative to the base plan over the largest of them, and what the base plan leaves of every limit."""
    problem = bound.problem
    cost = (problem.cost[rows] - problem.cost[bound.base[problem.unit[rows]]]).astype(np.float64)
    left = (problem.limit - problem.cost[bound.base].sum(axis=0)).astype(np.float64)
    scale = np.maximum(np.abs(cost).max(axis=0), 1.0)
    return (cost / scale).T, -np.inf, left / scale
