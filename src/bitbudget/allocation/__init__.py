"""Across layers: one exact solver picks a point of every unit under all budgets. It knows nothing of models."""

from bitbudget.allocation.difference import Change, Difference, diff
from bitbudget.allocation.frontier import Frontier, Upgrade
from bitbudget.allocation.infeasible import Infeasible
from bitbudget.allocation.interactions import Interaction, solve_with_interactions
from bitbudget.allocation.latency import Latency, LatencyTable
from bitbudget.allocation.objective import Objective
from bitbudget.allocation.plan import Plan, plan_from_table, plan_of
from bitbudget.allocation.question import Budgets, Settings
from bitbudget.allocation.rules import Rule
from bitbudget.allocation.search import Effort, Work
from bitbudget.allocation.solution import Solution
from bitbudget.allocation.solve import cheapest, frontier, solve
from bitbudget.allocation.tables import ScoreTable
from bitbudget.allocation.units import Point, Unit, alternatives, joined
from bitbudget.allocation.water_filling import equal_loss_bits, mixing_gain, nearest_points

__all__ = [
    "Budgets",
    "Change",
    "Difference",
    "Effort",
    "Frontier",
    "Infeasible",
    "Interaction",
    "Latency",
    "LatencyTable",
    "Objective",
    "Plan",
    "Point",
    "Rule",
    "ScoreTable",
    "Settings",
    "Solution",
    "Unit",
    "Upgrade",
    "Work",
    "alternatives",
    "cheapest",
    "diff",
    "equal_loss_bits",
    "frontier",
    "joined",
    "mixing_gain",
    "nearest_points",
    "plan_from_table",
    "plan_of",
    "solve",
    "solve_with_interactions",
]
