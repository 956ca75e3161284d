"""What a router costs and earns: operating points, cost-quality curve, hull, area, and paired bootstrap intervals.

Arrays only. Shapes throughout: ``n`` requests, ``m`` models, ``L`` operating points (settings of one router).
``score`` is (n, m) in [0, 1] and NaN where a model was not tried. ``cost`` is (n, m) in USD and NaN where unknown.
``p`` (predicted P(success)) and ``c`` (predicted cost, USD) are (n, m) without NaN.

A router of any kind becomes ``choices``, an (L, n) array with the model it calls per operating point and request.
From there one path serves all: realised points, upper concave hull, area, cost to keep a quality, bootstrap. For the
choices, prefer rows that the router was not fitted on: on its own training rows every figure here is too good.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from router_ml.errors import TableError
from training.metrics import BoolArray, FloatArray, IntArray

Statistic = Callable[[FloatArray, FloatArray], float]

_BREAKPOINT_BUDGET = 4_000_000  # numbers held at once while the breakpoints of the lambda sweep are collected
_WEIGHT_BUDGET = 4_000_000  # numbers held at once in a block of bootstrap weights


def sweep_choices(p: FloatArray, c: FloatArray, n_lambda: int = 200) -> IntArray:
    """``argmax_m p - lambda * c`` for a path of lambdas, from 0 (best model) to infinity (cheapest model).

    A request changes its model only at breakpoints (difference in p over difference in c of two models). Where they
    are few, as for constant predictions, one lambda lies between each two and the sweep is exact; else the lambdas are
    spaced evenly on a log scale over all but the outer 1 % of breakpoints. Rows share their lambdas, so predictions of
    several folds belong in one call.

    :param p: (n, m) predicted P(success).
    :param c: (n, m) predicted cost, USD.
    :param n_lambda: number of operating points at most, at least 2.
    :return: (L, n) model indices; at 0 ties go to the cheaper model, at infinity to the likelier one.
    """
    _check_predictions("sweep_choices", p, c)
    path = [likeliest(p, c)]
    path += [np.argmax(p - weight * c, axis=1) for weight in _lambdas(p, c, n_lambda - 2)]
    return np.stack([*path, _argmax(-c, p)]).astype(np.intp)


def cheapest_likely(p: FloatArray, c: FloatArray, threshold: float, otherwise: IntArray) -> IntArray:
    """The cheapest model with ``p >= threshold``, else the given one: the serving policy's rule, without its guards.

    :param p: (n, m) predicted P(success).
    :param c: (n, m) predicted cost, USD.
    :param threshold: probability wanted.
    :param otherwise: (n,) model to call where none is likely enough.
    :return: (n,) model indices; of two equally cheap models, the likelier one.
    """
    enough = p >= threshold
    cheapest = _argmax(np.where(enough, -c, -np.inf), np.where(enough, p, -np.inf))
    return np.where(enough.any(axis=1), cheapest, otherwise).astype(np.intp)


def lowest_loss(p: FloatArray, c: FloatArray, failure_cost_usd: float) -> IntArray:
    """The model of lowest ``c + (1 - p) * failure_cost_usd``: the serving policy's rule where a failure has a price.

    :param p: (n, m) predicted P(success).
    :param c: (n, m) predicted cost, USD.
    :param failure_cost_usd: price of a failure.
    :return: (n,) model indices; of two equal losses, the likelier model's. Guards are left out.
    """
    return _argmax(-(c + (1.0 - p) * failure_cost_usd), p)


def likeliest(p: FloatArray, c: FloatArray) -> IntArray:
    """:return: (n,) the model most likely to succeed, the cheaper of two equals."""
    return _argmax(p, -c)


def complete_grid(score: FloatArray, cost: FloatArray) -> tuple[BoolArray, BoolArray]:
    """What a cost-quality curve can be drawn on: priced models, and the rows on which all of them have score and cost.

    :param score: (n, m).
    :param cost: (n, m).
    :return: masks over rows (n,) and models (m,). No row may be left: a log in which one model was tried per request
        cannot say what another choice would have done.
    """
    known = ~np.isnan(score) & ~np.isnan(cost)
    models = np.asarray(known.any(axis=0))
    return np.asarray(known[:, models].all(axis=1) & models.any()), models


@dataclass(frozen=True, eq=False)
class CostQualityCurve:
    """A router's operating points on n complete rows.

    ``choices`` (L, n); ``score`` and ``cost`` (n, m) without NaN; ``n_left_out`` rows of the input were incomplete.
    ``group`` (n,): rows that hang together, such as those of one session, and are resampled together; None: each alone.
    """

    choices: IntArray
    score: FloatArray
    cost: FloatArray
    n_left_out: int = 0
    group: IntArray | None = None

    @property
    def n(self) -> int:
        """Number of requests behind each point."""
        return len(self.score)

    def points(self, weights: FloatArray | None = None) -> FloatArray:
        """Realised mean (cost, quality) of each operating point.

        :param weights: (B, n), each row summing to 1; uniform by default.
        :return: (L, 2), or (B, L, 2) with weights.
        """
        rows = np.arange(self.n)
        return _means(self.cost[rows, self.choices].T, self.score[rows, self.choices].T, weights)

    def singles(self, weights: FloatArray | None = None) -> FloatArray:
        """Mean (cost, quality) of each model used for everything: (m, 2), or (B, m, 2) with weights."""
        return _means(self.cost, self.score, weights)

    def value(self, statistic: Statistic) -> float:
        """:return: the statistic on all rows."""
        return statistic(self.points(), self.singles())


def realised_curve(
    choices: IntArray, score: FloatArray, cost: FloatArray, group: IntArray | None = None
) -> CostQualityCurve:
    """What given choices would have cost and earned.

    Only rows where all m models have score and cost are used: otherwise routers would be judged on different rows,
    each on those where its own choice happens to be known. Restrict to ``complete_grid``'s models first.

    :param choices: (L, n) model indices.
    :param score: (n, m), NaN where not tried.
    :param cost: (n, m) USD, NaN where unknown.
    :param group: (n,) codes; see :class:`CostQualityCurve`.
    :return: the curve, with the number of rows used and left out.
    :raises TableError: if shapes differ or no row is complete.
    """
    if score.shape != cost.shape or choices.ndim != 2 or choices.shape[1] != score.shape[0]:
        shapes = f"choices {choices.shape}, score {score.shape}, cost {cost.shape}"
        raise TableError("cost-quality curve", [f"got {shapes}; expected (L, n), (n, m), (n, m)"])
    complete = ~(np.isnan(score) | np.isnan(cost)).any(axis=1)
    if not complete.any():
        problem = "no request has score and cost of every model; restrict it to the models and rows of complete_grid()"
        raise TableError("cost-quality curve", [problem])
    kept = None if group is None else np.unique(group[complete], return_inverse=True)[1]
    return CostQualityCurve(choices[:, complete], score[complete], cost[complete], int((~complete).sum()), kept)


def cost_quality_curve(
    score: FloatArray, cost: FloatArray, p: FloatArray, c: FloatArray, n_lambda: int = 200
) -> CostQualityCurve:
    """Sweep lambda in ``argmax p - lambda * c``, realised on the given rows.

    :param score: (n, m), NaN where not tried.
    :param cost: (n, m) USD, NaN where unknown.
    :param p: (n, m) predicted P(success).
    :param c: (n, m) predicted cost, USD.
    :param n_lambda: number of operating points at most.
    :return: the curve over complete rows; see :func:`realised_curve`.
    """
    return realised_curve(sweep_choices(p, c, n_lambda), score, cost)


def upper_hull(points: FloatArray) -> FloatArray:
    """Vertices of the non-decreasing upper concave hull: what mixing operating points at random can reach.

    :param points: (k, 2) of (cost, quality), k >= 1, any order.
    :return: (h, 2), cost and quality strictly ascending, from the cheapest point to the best one.
    """
    ordered = points[np.lexsort((-points[:, 1], points[:, 0]))]
    best_so_far = np.maximum.accumulate(ordered[:, 1])
    frontier = ordered[np.concatenate([[True], ordered[1:, 1] > best_so_far[:-1]])]
    hull: list[list[float]] = []
    for x, y in frontier.tolist():  # Andrew's monotone chain (1979), upper half
        while len(hull) > 1 and _below(hull[-2], hull[-1], x, y):
            hull.pop()
        hull.append([x, y])
    return np.array(hull)


def hull_area(points: FloatArray, singles: FloatArray) -> float:
    """Average height of the upper hull over the price range of the single models.

    The range runs from the mean cost of the cheapest single model to that of the dearest. Right of its best point the
    hull goes on flat. The cheapest single model always counts as a point: using it for everything, or for a random
    share, is open to any router, and so the hull starts no later than the range does.

    The hull is taken on the judged rows, so noise helps a curve with many points over one with few. Against a
    constant mixture, compare with the same predictions shuffled over the requests where that could decide.

    :param points: (L, 2) of (cost, quality).
    :param singles: (m, 2) of (cost, quality), each model used for everything.
    :return: mean quality, in the units of the score; the height itself where all models cost the same.
    """
    hull = _attainable(points, singles)
    low, high = float(singles[:, 0].min()), float(singles[:, 0].max())
    if high <= low:
        return float(np.interp(low, hull[:, 0], hull[:, 1]))
    inside = hull[(hull[:, 0] > low) & (hull[:, 0] < high), 0]
    knots = np.concatenate([[low], inside, [high]])
    heights = np.interp(knots, hull[:, 0], hull[:, 1])
    return float(np.sum(np.diff(knots) * (heights[1:] + heights[:-1]) / 2) / (high - low))


def cost_at_quality(points: FloatArray, singles: FloatArray, target_fraction: float = 0.95) -> float:
    """Least cost at which the hull keeps a fraction of the best single model's quality.

    :param points: (L, 2) of (cost, quality).
    :param singles: (m, 2); the best is the one of highest quality, the cheaper of two equals.
    :param target_fraction: share of the best single model's quality to reach.
    :return: that cost as a fraction of the best single model's mean cost, adjacent points mixed linearly; infinity
        where the hull does not reach the target, NaN where the best model costs nothing.
    """
    best_cost, best_quality = singles[np.lexsort((singles[:, 0], -singles[:, 1]))[0]]
    if best_cost <= 0:
        return math.nan
    hull = _attainable(points, singles)
    target = target_fraction * best_quality
    reached = np.flatnonzero(hull[:, 1] >= target - 1e-12)  # at 1.0 the same mean may differ in its last bit
    if not reached.size:
        return math.inf
    first = int(reached[0])
    if first == 0:
        return float(hull[0, 0] / best_cost)
    return float(np.interp(target, hull[first - 1 : first + 1, 1], hull[first - 1 : first + 1, 0]) / best_cost)


@dataclass(frozen=True)
class PairedDifference:
    """``a - b`` of one statistic on the same requests: observed, with its two-sided 95 % percentile interval.

    ``p_a_le_b`` is the share of resamples with a <= b: small when a is larger, near 1 when it is smaller.
    """

    difference: float
    low: float
    high: float
    p_a_le_b: float
    n: int
    n_boot: int


def bootstrap_samples(
    curve: CostQualityCurve, statistics: Sequence[Statistic], n_boot: int = 1000, seed: int = 0
) -> FloatArray:
    """Statistics on resampled requests, single models and their price range resampled along.

    Groups are drawn whole: requests of one session are not independent evidence.

    :param curve: operating points on n rows.
    :param statistics: k of them: ``hull_area``, ``functools.partial(cost_at_quality, target_fraction=...)``.
    :param n_boot: number of resamples.
    :param seed: equal seeds and equal groups resample the same requests, which makes two curves a pair.
    :return: (k, n_boot) values.
    """
    values: list[list[float]] = []
    for weights in resamples(np.arange(curve.n) if curve.group is None else curve.group, n_boot, seed):
        for points, singles in zip(curve.points(weights), curve.singles(weights), strict=True):
            values.append([statistic(points, singles) for statistic in statistics])
    return np.array(values).T


def paired_bootstrap(
    curve_a: CostQualityCurve, curve_b: CostQualityCurve, statistic: Statistic, n_boot: int = 1000, seed: int = 0
) -> PairedDifference:
    """Percentile bootstrap of the difference between two routers, requests resampled in pairs (Efron 1979).

    The routers stay as they are: this is the uncertainty from the judged requests, not from the training rows. Where
    one curve is in many comparisons, ``bootstrap_samples`` once per curve and ``paired_difference`` save the repeats.

    :param curve_a: the first router.
    :param curve_b: the second, on the same rows.
    :param statistic: one of those that :func:`bootstrap_samples` takes.
    :param n_boot: number of resamples.
    :param seed: seed of the resamples.
    :return: the difference a - b with its interval.
    :raises TableError: if the curves are not on the same outcomes.
    """
    if not (np.array_equal(curve_a.score, curve_b.score) and np.array_equal(curve_a.cost, curve_b.cost)):
        raise TableError("paired_bootstrap", [f"the curves have different outcomes (n={curve_a.n}, n={curve_b.n})"])
    return paired_difference(
        curve_a.value(statistic), curve_b.value(statistic),
        bootstrap_samples(curve_a, [statistic], n_boot, seed)[0],
        bootstrap_samples(curve_b, [statistic], n_boot, seed)[0],
        curve_a.n,
    )  # fmt: skip


def paired_difference(
    value_a: float, value_b: float, samples_a: FloatArray, samples_b: FloatArray, n: int
) -> PairedDifference:
    """Put observed values and paired resamples together.

    :param value_a: statistic of a on all rows.
    :param value_b: statistic of b on all rows.
    :param samples_a: (n_boot,) of one statistic from :func:`bootstrap_samples`.
    :param samples_b: (n_boot,) with the same seed and rows.
    :param n: number of requests.
    :return: the difference; an end of the interval is infinite where a target quality was reached by one side only.
    """
    difference = _minus(samples_a, samples_b)
    # an order statistic and not an interpolation, which would turn infinite samples into NaN
    low, high = np.quantile(difference, [0.025, 0.975], method="inverted_cdf")
    observed = float(_minus(np.array([value_a]), np.array([value_b]))[0])
    at_most = float(np.mean(samples_a <= samples_b))
    return PairedDifference(observed, float(low), float(high), at_most, n, samples_a.size)


def _minus(a: FloatArray, b: FloatArray) -> FloatArray:
    """Difference a - b, where two unreached targets (infinity) are equal."""
    equal = a == b
    return np.subtract(a, b, out=np.zeros_like(a), where=~equal)


def _check_predictions(where: str, p: FloatArray, c: FloatArray) -> None:
    if p.ndim != 2 or p.shape != c.shape:
        raise TableError(where, [f"got p {p.shape} and c {c.shape}; expected two arrays (n, m)"])
    for name, values in (("p", p), ("c", c)):
        if not np.isfinite(values).all():
            raise TableError(where, [f"{name} has {int((~np.isfinite(values)).sum())} values that are not finite"])


def _argmax(first: FloatArray, second: FloatArray) -> IntArray:
    """Row-wise argmax of ``first``; ``second`` breaks ties."""
    tied = first == first.max(axis=1, keepdims=True)
    chosen: IntArray = np.argmax(np.where(tied, second, -np.inf), axis=1)
    return chosen


def _lambdas(p: FloatArray, c: FloatArray, limit: int) -> FloatArray:
    n, m = p.shape
    rows = slice(None, None, max(1, n * m * m // _BREAKPOINT_BUDGET))
    dp = p[rows, :, None] - p[rows, None, :]
    dc = c[rows, :, None] - c[rows, None, :]
    trade = (dp > 0) & (dc > 0)
    breakpoints = np.unique(dp[trade] / dc[trade])
    breakpoints = breakpoints[np.isfinite(breakpoints) & (breakpoints > 0)]
    if breakpoints.size <= limit + 1:
        exact: FloatArray = np.sqrt(breakpoints[1:]) * np.sqrt(breakpoints[:-1])
        return exact
    low, high = np.quantile(breakpoints, [0.005, 0.995])
    return np.geomspace(low, high, limit)


def _means(cost: FloatArray, score: FloatArray, weights: FloatArray | None) -> FloatArray:
    """(n, k) columns to (k, 2) means, or (B, k, 2) weighted ones."""
    if weights is None:
        return np.stack([cost.mean(axis=0), score.mean(axis=0)], axis=-1)
    return np.stack([weights @ cost, weights @ score], axis=-1)


def resamples(group: IntArray, n_boot: int, seed: int) -> Iterator[FloatArray]:
    """Weights of rows in resamples of whole groups, in blocks that bound memory.

    :param group: (n,) codes from 0.
    :return: blocks (b, n), ``n_boot`` rows in all, each summing to 1; equal for equal groups and seeds.
    """
    rng = np.random.default_rng(seed)
    n_groups = int(group.max()) + 1
    block = max(1, _WEIGHT_BUDGET // group.size)
    for start in range(0, n_boot, block):
        counts = rng.multinomial(n_groups, np.full(n_groups, 1.0 / n_groups), size=min(block, n_boot - start))
        weights = counts[:, group]
        yield weights / weights.sum(axis=1, keepdims=True)


def _below(a: list[float], b: list[float], x: float, y: float) -> bool:
    """Whether b lies on or below the segment from a to (x, y)."""
    return (b[0] - a[0]) * (y - a[1]) >= (b[1] - a[1]) * (x - a[0])


def _attainable(points: FloatArray, singles: FloatArray) -> FloatArray:
    cheapest = singles[np.lexsort((-singles[:, 1], singles[:, 0]))[0]]
    return upper_hull(np.vstack([points, cheapest]))
