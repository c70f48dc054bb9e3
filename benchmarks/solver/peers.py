"""The allocators of other tools, written from their descriptions: each takes units with one cost and a budget, and returns
one point of every unit within it, or None where its rule finds none.

    greedy per bit        upgrade the unit with the largest saving per byte, from the cheapest plan on, until one does not fit
                          (exllamav3's repeated steps of ΔKL / Δbits)
    annealing             random moves of one or two units, temperature 2 → 1e-4 by 0.995, 1000 moves each (exllamav2)
    threshold bisection   every unit takes its cheapest point with a score under one threshold for all (ModelOpt, mlx-lm)
    Lagrange without fill one price per byte for all, by bisection; what is left over stays unused
    Lagrange with fill    the same, then whatever saves most and fits (llama.cpp's pull request 15550)
    top-p                 rank units by the loss of the cheapest uniform choice; the top share takes the dearer of two choices,
                          the share as large as fits (hand recipes; fixed-share rules)
    uniform               the same place in every unit's list of points by cost
"""

from collections.abc import Callable, Sequence

import numpy as np

from bitbudget.allocation import Point, Unit

Plan = list[Point]
MOVES = 1000  # of annealing at every temperature; 2 → 1e-4 takes 1976 of them


def greedy_per_bit(units: Sequence[Unit], budget: int) -> Plan | None:
    """Upgrade by upgrade, the best ratio first; stop at the first that does not fit."""
    plan = [min(unit.points, key=lambda point: (point.cost[0], point.score)) for unit in units]
    left = budget - _total(plan)
    steps = [_best_step(unit, point) for unit, point in zip(units, plan, strict=True)]
    while True:
        best = max(range(len(units)), key=lambda place: steps[place][0])
        ratio, point = steps[best]
        if point is None or ratio <= 0 or point.cost[0] - plan[best].cost[0] > left:
            return plan
        left -= point.cost[0] - plan[best].cost[0]
        plan[best] = point
        steps[best] = _best_step(units[best], point)


def _best_step(unit: Unit, now: Point) -> tuple[float, Point | None]:
    dearer = [point for point in unit.points if point.cost[0] > now.cost[0]]
    ratios = [((now.score - point.score) / (point.cost[0] - now.cost[0]), point) for point in dearer]
    return max(ratios, key=lambda entry: entry[0], default=(0.0, None))


def annealing(units: Sequence[Unit], budget: int, seed: int = 0) -> Plan | None:
    """Random moves of one unit, or of two in opposite directions, accepted by temperature."""
    draw = np.random.default_rng(seed)
    tables = [sorted(unit.points, key=lambda point: point.cost[0]) for unit in units]
    now = [0] * len(units)
    left = budget - sum(table[0].cost[0] for table in tables)
    # The temperature is relative to what one unit may lose at most: without that, wide tables never cool.
    scale = float(np.median([max(point.score for point in unit.points) for unit in units]))
    heat, best_loss = 2.0, sum(table[0].score for table in tables)
    loss, best = best_loss, list(now)
    while heat > 1e-4:
        chosen = draw.integers(0, len(units), (MOVES, 2))
        steps = draw.integers(0, 2, (MOVES, 2)) * 2 - 1
        luck = draw.random(MOVES)
        for pair, step, chance in zip(chosen.tolist(), steps.tolist(), luck.tolist(), strict=True):
            moves = _moves(tables, now, pair, step)
            cost = sum(tables[unit][to].cost[0] - tables[unit][now[unit]].cost[0] for unit, to in moves)
            change = sum(tables[unit][to].score - tables[unit][now[unit]].score for unit, to in moves)
            if not moves or cost > left or (change > 0 and chance >= np.exp(-change / (heat * scale))):
                continue
            left, loss = left - cost, loss + change
            for unit, to in moves:
                now[unit] = to
            if loss < best_loss:
                best_loss, best = loss, list(now)
        heat *= 0.995
    return [table[place] for table, place in zip(tables, best, strict=True)]


def _moves(
    tables: Sequence[Sequence[Point]], now: Sequence[int], pair: Sequence[int], step: Sequence[int]
) -> list[tuple[int, int]]:
    """One unit's step, and a second one's where it goes the other way; none where a step leaves the list."""
    units = pair if step[0] != step[1] and pair[0] != pair[1] else pair[:1]
    moves = [(unit, now[unit] + direction) for unit, direction in zip(units, step, strict=False)]
    return moves if all(0 <= to < len(tables[unit]) for unit, to in moves) else []


def threshold_bisection(units: Sequence[Unit], budget: int) -> Plan | None:
    """The lowest threshold on scores whose plan fits, by bisection over all scores."""
    tables = [sorted(unit.points, key=lambda point: (point.cost[0], point.score)) for unit in units]
    scores = sorted({point.score for unit in units for point in unit.points})
    return _lowest(scores, lambda limit: [_under(table, limit) for table in tables], budget)


def _under(table: Sequence[Point], limit: float) -> Point:
    return next((point for point in table if point.score <= limit), min(table, key=lambda point: point.score))


def lagrange(units: Sequence[Unit], budget: int) -> Plan | None:
    """The lowest price per byte whose plan fits, by 60 halvings."""
    low, high = 0.0, 1e6
    plan = None
    for _ in range(120):
        price = (low * high) ** 0.5 if low > 0 else high * 1e-3
        candidate = [min(unit.points, key=lambda point: point.score + price * point.cost[0]) for unit in units]
        if _total(candidate) <= budget:
            plan, high = candidate, price
        else:
            low = price
        if low == 0 and high < 1e-30:
            break
    return plan


def lagrange_with_fill(units: Sequence[Unit], budget: int) -> Plan | None:
    """Lagrange, then the largest saving that fits, again and again."""
    plan = lagrange(units, budget)
    if plan is None:
        return None
    left = budget - _total(plan)
    while True:
        fits = [
            (now.score - point.score, number, point)
            for number, (unit, now) in enumerate(zip(units, plan, strict=True))
            for point in unit.points
            if point.cost[0] - now.cost[0] <= left and point.score < now.score
        ]
        if not fits:
            return plan
        _, number, point = max(fits, key=lambda entry: (entry[0], -entry[1]))
        left -= point.cost[0] - plan[number].cost[0]
        plan[number] = point


def top_p(units: Sequence[Unit], budget: int) -> Plan | None:
    """The best over neighbouring pairs of uniform choices of: the most sensitive units take the dearer one, as many as fit."""
    tables = [sorted(unit.points, key=lambda point: (point.cost[0], point.score)) for unit in units]
    ranked = sorted(range(len(units)), key=lambda number: -tables[number][0].score)
    best = None
    for place in range(min(map(len, tables)) - 1):
        plan = [table[place] for table in tables]
        left = budget - _total(plan)
        if left < 0:
            break
        for number in ranked:
            cost = tables[number][place + 1].cost[0] - plan[number].cost[0]
            if cost > left:
                break
            plan[number], left = tables[number][place + 1], left - cost
        if best is None or _loss(plan) < _loss(best):
            best = plan
    return best


def uniform(units: Sequence[Unit], budget: int) -> Plan | None:
    """The best plan with the same place for all."""
    tables = [sorted(unit.points, key=lambda point: (point.cost[0], point.score)) for unit in units]
    plans = [[table[place] for table in tables] for place in range(min(map(len, tables)))]
    return min((plan for plan in plans if _total(plan) <= budget), key=_loss, default=None)


def _lowest(values: Sequence[float], plan_at: Callable[[float], Plan], budget: int) -> Plan | None:
    """The plan at the lowest value that fits."""
    low, high = 0, len(values) - 1
    if _total(plan_at(values[high])) > budget:
        return None
    while low < high:
        middle = (low + high) // 2
        if _total(plan_at(values[middle])) <= budget:
            high = middle
        else:
            low = middle + 1
    return plan_at(values[high])


def _total(plan: Plan) -> int:
    return sum(point.cost[0] for point in plan)


def _loss(plan: Plan) -> float:
    return sum(point.score for point in plan)


PEERS: dict[str, Callable[[Sequence[Unit], int], Plan | None]] = {
    "greedy per bit": greedy_per_bit,
    "annealing": annealing,
    "threshold bisection": threshold_bisection,
    "Lagrange without fill": lagrange,
    "Lagrange with fill": lagrange_with_fill,
    "top-p": top_p,
    "uniform": uniform,
}
