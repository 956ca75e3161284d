"""Lines of the quality table: plans made for requests that nothing was fitted on, carried out on recorded outcomes.

Verifiers are simulated: an answer is accepted with the true or the false acceptance, drawn anew for each of 20 seeds.
Every goal that a user can set gives a point of mean cost and quality: a price of a failure, or a quality as a share of
the best model's, with that model as the last resort or without.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from router_ml.dependence import Dependence
from router_ml.plan import MAX_CANDIDATES, Candidates, Goal, Plan, Search, shortlist
from router_ml.request import VerifierSpec
from training import brute_force
from training.baselines import RandomMixture, out_of_fold
from training.brute_force import Problem
from training.cost_quality import CostQualityCurve, complete_grid, cost_at_quality, resamples, sweep_choices, upper_hull
from training.dependence import FittedDependence
from training.judging import Judged
from training.metrics import FloatArray, IntArray
from training.quality_rows import Row

N_SEEDS = 20
N_PRICES = 40  # of a failure, from next to nothing to far above all costs
SHARES = tuple(share / 100 for share in range(80, 114, 2))  # of the best model's P(success), wanted of a plan
ALIKE = SHARES.index(1.0)  # as likely as the best model: what is asked for where nothing is said
N_BOOT = 200
# table -> (true acceptance, false acceptance) -> cost for the best single model's quality, as a share of its cost
TARGETS: dict[str, dict[tuple[float, float], float]] = {
    "swebench_bash": {(1.0, 0.0): 0.110, (0.95, 0.05): 0.165, (0.90, 0.20): 0.330},
    "routerbench": {(0.95, 0.05): 0.150},
}
MIXTURE_SHARE = 0.99  # of the mixture's quality at equal cost that routing without a verifier may not go below


@dataclass(frozen=True, eq=False)
class Outcomes:
    """A complete grid of n requests and m models: what happened, and what was predicted for rows not fitted on.

    :param dependence: by the fold that a request is judged in, of the m models.
    :param best: the best single model, the cheaper of two equals: the one to escalate to.
    """

    success: FloatArray
    cost: FloatArray
    p: FloatArray
    c: FloatArray
    fold: IntArray
    group: IntArray
    dependence: Sequence[Dependence]
    best: int

    @classmethod
    def of(cls, judged: Judged, fitted: Sequence[FittedDependence]) -> Outcomes | None:
        """The rows on which every priced model was tried; None where there is none."""
        rows, priced = complete_grid(judged.score, judged.cost)
        if not rows.any() or priced.sum() < 2 or judged.fold is None:
            return None
        kept = np.ix_(rows, priced)
        success, cost = judged.success[kept], judged.cost[kept]
        best = int(np.lexsort((cost.mean(axis=0), -success.mean(axis=0)))[0])
        group = np.unique(judged.group[rows], return_inverse=True)[1]
        fold = np.asarray(judged.fold, dtype=np.intp)[rows]
        dependence = [Dependence(one.loadings[priced].tolist(), one.hopeless) for one in fitted]
        return cls(success, cost, judged.p[kept], judged.c[kept], fold, group, dependence, best)

    def points(self, choices: IntArray) -> FloatArray:
        """(k, 2) mean cost and quality of k choices (k, n) of one model for each request."""
        return CostQualityCurve(choices, self.success, self.cost).points()

    @property
    def singles(self) -> FloatArray:
        """(m, 2) mean cost and quality of each model."""
        return np.stack([self.cost.mean(axis=0), self.success.mean(axis=0)], axis=1)


@dataclass(frozen=True, eq=False)
class CarriedOut:
    """Plans carried out: cost and success of each request (k, n), means over seeds, and what the plans had promised."""

    cost: FloatArray
    success: FloatArray
    promised: FloatArray

    def points(self, weights: FloatArray | None = None) -> FloatArray:
        """(k, 2) mean cost and quality."""
        if weights is None:
            return np.stack([self.cost.mean(axis=1), self.success.mean(axis=1)], axis=1)
        return np.stack([self.cost @ weights, self.success @ weights], axis=1)


def plan_all(outcomes: Outcomes, verifier: VerifierSpec) -> list[list[Plan]]:
    """For each request, the best plan for each goal: ``SHARES`` with the last resort, without, then the prices."""
    models, best = range(outcomes.cost.shape[1]), outcomes.best
    dear = float(outcomes.cost.mean(axis=0).max())
    prices = [Goal(failure_cost_usd=float(price)) for price in np.geomspace(dear * 1e-3, dear * 100.0, N_PRICES)]
    out = []
    for p, c, fold in zip(outcomes.p.tolist(), outcomes.c.tolist(), outcomes.fold.tolist(), strict=True):
        candidates = Candidates(models, p, c, verifier, outcomes.dependence[fold])
        if len(models) > MAX_CANDIDATES:
            candidates = candidates.take(shortlist(candidates, Goal(), keep=(best,)))
        search = Search(candidates)
        wanted = [Goal(min_quality=min(1.0, share * p[best])) for share in SHARES]
        held = [goal._replace(last_resort=best) for goal in wanted]
        out.append([search.best(goal).best for goal in [*held, *wanted, *prices]])
    return out


def carry_out(
    plans: Sequence[Sequence[Plan]], outcomes: Outcomes, verifier: VerifierSpec, seed: int = 0
) -> CarriedOut:  # fmt: skip
    """Carry plans out on what was recorded. One verdict for each answer and seed, whichever plan asks for it."""
    n, m = outcomes.success.shape
    rng = np.random.default_rng(seed)
    chance = np.where(outcomes.success > 0.5, verifier.true_accept, verifier.false_accept)
    accepted = rng.random((N_SEEDS, n, m)) < chance
    k = len(plans[0])
    cost, success, promised = np.zeros((k, n)), np.zeros((k, n)), np.zeros((k, n))
    for i, of_request in enumerate(plans):
        known: dict[tuple[int, ...], tuple[float, float]] = {}
        for j, plan in enumerate(of_request):
            if plan.models not in known:
                known[plan.models] = _carried_out(plan.models, accepted[:, i], outcomes.success[i], outcomes.cost[i])
            cost[j, i], success[j, i] = known[plan.models]
            promised[j, i] = plan.p_success
    return CarriedOut(cost, success, promised)


def _carried_out(
    models: tuple[int, ...], accepted: np.ndarray, success: FloatArray, cost: FloatArray
) -> tuple[float, float]:
    """Mean cost and success over seeds. :param accepted: (seeds, m)."""
    waiting = np.ones(len(accepted), dtype=bool)
    spent = right = 0.0
    for stage, model in enumerate(models):
        spent += waiting.mean() * cost[model]
        ends = waiting & (accepted[:, model] | (stage == len(models) - 1))
        right += ends.mean() * success[model]
        waiting &= ~accepted[:, model]
    return float(spent), float(right)


def plan_rows(
    name: str, judged: Judged, dependence: Sequence[FittedDependence], note: str = "", *, seed: int = 0
) -> Iterator[Row]:  # fmt: skip
    """Plans at three reliabilities of the verifier, and routing without one. Nothing where no row is complete.

    :param judged: predictions for rows not fitted on. :param dependence: of each of its folds.
    """
    outcomes = Outcomes.of(judged, dependence)
    if outcomes is None:
        return
    targets = TARGETS.get(name, {})
    singles = outcomes.singles
    for accept in [(1.0, 0.0), (0.95, 0.05), (0.90, 0.20)]:
        verifier = VerifierSpec(*accept)
        done = carry_out(plan_all(outcomes, verifier), outcomes, verifier, seed)
        share = cost_at_quality(done.points(), singles, 1.0)
        low, high = _interval(partial(_share, done), outcomes, seed)
        target = targets.get(accept)
        label = f"plans, verifier {accept[0]:g}/{accept[1]:g}"
        n = f"n = {len(outcomes.cost):,}, {N_SEEDS} seeds"
        yield Row(
            name, f"{label}: cost for the best model's quality, of its cost", _finite(share),
            "" if target is None else f"<= {target:.3f}", None if target is None else share <= target, low, high,
            "; ".join(part for part in (n, note) if part),
        )  # fmt: skip
        cost, kept = np.array([done.cost[ALIKE].mean(), done.success[ALIKE].mean()]) / singles[outcomes.best]
        yield Row(
            name, f"{label}: quality kept where as likely as the best model is asked for", float(kept),
            note=f"at {cost:.3f} of its cost; promised {done.promised[ALIKE].mean():.3f}, kept "
            f"{done.success[ALIKE].mean():.3f}, the best model {singles[outcomes.best, 1]:.3f}",
        )  # fmt: skip
    yield from _without_verifier(name, judged, outcomes)


def _share(done: CarriedOut, outcomes: Outcomes, weights: FloatArray) -> float:
    singles = np.stack([weights @ outcomes.cost, weights @ outcomes.success], axis=1)
    return cost_at_quality(done.points(weights), singles, 1.0)


def _interval(
    statistic: Callable[[Outcomes, FloatArray], float], outcomes: Outcomes, seed: int
) -> tuple[float | None, float | None]:
    """95 % percentile interval over requests, groups drawn whole; an end that is infinite is None."""
    values = [
        statistic(outcomes, weights) for block in resamples(outcomes.group, N_BOOT, seed) for weights in block
    ]  # fmt: skip
    low, high = np.quantile(values, [0.025, 0.975], method="inverted_cdf")
    return _finite(float(low)), _finite(float(high))


def _without_verifier(name: str, judged: Judged, outcomes: Outcomes) -> Iterator[Row]:
    """Routing without a verifier: never dearer than the best model for its quality, never below the mixture."""
    points = outcomes.points(sweep_choices(outcomes.p, outcomes.c))
    singles = outcomes.singles
    alone = singles[outcomes.best]
    share = cost_at_quality(np.vstack([points, alone]), singles, 1.0)
    yield Row(
        name, "no verifier: cost for the best model's quality, of its cost", share, "<= 1.000", share <= 1.0,
        note="where no point of the router reaches it, everything is escalated",
    )  # fmt: skip
    rows_of = judged.requests.take(np.flatnonzero(complete_grid(judged.score, judged.cost)[0]))
    mixture = out_of_fold(RandomMixture, rows_of, outcomes.success, outcomes.cost, outcomes.fold)
    hull = upper_hull(outcomes.points(sweep_choices(mixture.p, mixture.c)))
    curve = upper_hull(points)
    # both are straight between their knots, so the least ratio is at one of them
    costs = np.concatenate([hull[:, 0], curve[:, 0]])
    costs = costs[costs >= max(hull[0, 0], curve[0, 0])]
    worst = float((np.interp(costs, *curve.T) / np.interp(costs, *hull.T)).min())
    single = float((points[:, 1] / np.interp(points[:, 0], *hull.T)).min())
    yield Row(
        name, "no verifier: least quality of the curve, of the mixture's at equal cost", worst,
        f">= {MIXTURE_SHARE:.2f}", worst >= MIXTURE_SHARE,
        note=f"both may mix two settings; one price of a failure by itself, of {len(points)}: {single:.3f} at worst",
    )  # fmt: skip


def planner_rows(n_problems: int = 1_000, seed: int = 0) -> Iterator[Row]:
    """The planner against looking at every sequence one by one."""
    rng = np.random.default_rng(seed)
    excess = [brute_force.excess_loss(Problem.random(rng, 3 + i % 3)) for i in range(n_problems)]
    yield Row(
        "planner", "loss above brute force, worst of random problems of 3 to 5 models", max(excess), "<= 0.0010",
        max(excess) <= 0.001, note=f"{n_problems:,} problems, three prices and one wanted quality each",
    )  # fmt: skip


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
