"""Plans against brute force, a simulated world, and what must hold for any of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router_ml.dependence import Dependence
from router_ml.plan import (
    MAX_CANDIDATES,
    Candidates,
    Goal,
    NothingFitsError,
    Plan,
    Search,
    best_plans,
    lower_bound,
    shortlist,
)
from router_ml.request import VerifierSpec
from training import brute_force
from training.brute_force import Problem

PERFECT = VerifierSpec(1.0, 0.0)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_the_plan_is_that_of_brute_force(n: int) -> None:
    rng = np.random.default_rng(n)
    for _ in range(8):
        assert brute_force.excess_loss(Problem.random(rng, n)) <= 0.001


@pytest.mark.parametrize("n", [2, 4])
def test_what_a_plan_says_of_itself_is_what_brute_force_says(n: int) -> None:
    problem = Problem.random(np.random.default_rng(n), n)
    truth = problem.every_plan()
    for price in (0.01, 0.1, 1.0, 10.0):
        best = best_plans(problem.candidates(), Goal(failure_cost_usd=price)).best
        assert (best.expected_cost_usd, best.p_success) == pytest.approx(truth[best.models], abs=1e-4)


@given(st.integers(0, 10_000), st.integers(1, 5), st.floats(0.0, 1.0))
@settings(max_examples=60, deadline=None)
def test_a_goal_is_kept_and_nothing_dearer_than_the_best_single_model_is_planned(seed: int, n: int, q: float) -> None:
    problem = Problem.random(np.random.default_rng(seed), n)
    candidates = problem.candidates()
    plan = best_plans(candidates, Goal(min_quality=q)).best
    alone = [c + problem.verifier.cost_usd for c, p in zip(problem.cost, problem.p, strict=True) if p >= q]
    if alone:
        assert plan.p_success >= q - 1e-6 and plan.expected_cost_usd <= min(alone) + 1e-12
    else:  # the likeliest there is, and so not below the best single model
        assert plan.p_success >= max(problem.p) - 1e-6
    assert plan.reach[0] == pytest.approx(1.0) and all(0.0 <= r <= 1.0 + 1e-12 for r in (*plan.reach, *plan.p_stage))
    assert len(set(plan.models)) == len(plan.models)


@given(st.integers(0, 10_000), st.floats(0.001, 3.0), st.floats(0.5, 20.0))
@settings(max_examples=40, deadline=None)
def test_caps_hold_for_the_worst_case(seed: int, budget: float, seconds: float) -> None:
    problem = Problem.random(np.random.default_rng(seed), 4)
    latency = [1.0, 2.0, 4.0, None]
    n = len(problem.p)
    candidates = Candidates(range(n), problem.p, problem.cost, problem.verifier, problem.dependence, latency_s=latency)
    goal = Goal(failure_cost_usd=100.0, budget_usd=budget, max_latency_s=seconds)
    try:
        plan = best_plans(candidates, goal).best
    except NothingFitsError:
        single = zip(candidates.cost.tolist(), candidates.latency_s.tolist(), strict=True)
        assert all(cost > budget or wait > seconds for cost, wait in single)
    else:
        assert sum(candidates.cost[i] for i in plan.models) <= budget * (1 + 1e-6)
        assert sum(candidates.latency_s[i] for i in plan.models) <= seconds * (1 + 1e-6)


def simulated(
    plan: Plan, p: Sequence[float], loading: float, hopeless: float, verifier: VerifierSpec, cost: Sequence[float]
) -> tuple[float, float]:
    """Success rate and mean cost of a plan in a world with a normal difficulty and some hopeless requests."""
    rng = np.random.default_rng(0)
    n = 400_000
    z = rng.standard_normal(n)
    share = hopeless * (1.0 - max(p))
    beyond = rng.random(n) < share
    answer, spent, waiting = np.zeros(n, bool), np.zeros(n), np.ones(n, bool)
    for stage, model in enumerate(plan.models):
        offset = NormalDist().inv_cdf(p[model] / (1.0 - share)) * math.sqrt(1.0 + loading**2)
        right = (loading * z + rng.standard_normal(n) < offset) & ~beyond
        accepted = rng.random(n) < np.where(right, verifier.true_accept, verifier.false_accept)
        spent += waiting * (cost[model] + verifier.cost_usd)
        answer = np.where(waiting & (accepted | (stage == len(plan.models) - 1)), right, answer)
        waiting &= ~accepted
    return float(answer.mean()), float(spent.mean())


@pytest.mark.parametrize("loading", [0.0, 1.0, 2.5])
@pytest.mark.parametrize("hopeless", [0.0, 0.5])
@pytest.mark.parametrize("accept", [(1.0, 0.0), (0.9, 0.2)])
def test_a_plan_does_what_it_says(loading: float, hopeless: float, accept: tuple[float, float]) -> None:
    p, cost, verifier = [0.5, 0.6, 0.8], [0.01, 0.05, 1.0], VerifierSpec(*accept, cost_usd=0.01)
    candidates = Candidates(range(3), p, cost, verifier, Dependence([loading] * 3, hopeless))
    plan = best_plans(candidates, Goal(min_quality=0.85)).best
    right, spent = simulated(plan, p, loading, hopeless, verifier, cost)
    assert plan.p_success == pytest.approx(right, abs=0.004)
    assert plan.expected_cost_usd == pytest.approx(spent, rel=0.02)


def test_failures_that_go_together_make_a_plan_less_likely() -> None:
    p, cost = [0.5, 0.6, 0.8], [0.01, 0.05, 1.0]
    success = [
        best_plans(
            Candidates(range(3), p, cost, PERFECT, Dependence([b] * 3, 0.0)), Goal(failure_cost_usd=1e6)
        ).best.p_success
        for b in (0.0, 0.5, 1.0, 2.0, 5.0)
    ]
    assert success == sorted(success, reverse=True)
    assert success[0] == pytest.approx(1 - 0.5 * 0.4 * 0.2, abs=1e-6)  # independent


def test_independent_models_and_a_perfect_verifier_are_called_by_weitzmans_index() -> None:
    p, cost = [0.2, 0.5, 0.7, 0.9], [0.05, 0.01, 0.2, 0.1]
    candidates = Candidates(range(4), p, cost, PERFECT, Dependence([0.0] * 4, 0.0))
    plan = best_plans(candidates, Goal(failure_cost_usd=100.0)).best
    index = [c / q for c, q in zip(cost, p, strict=True)]
    assert list(plan.models) == sorted(range(4), key=index.__getitem__)


def test_it_says_when_not_to_cascade() -> None:
    def plan(p: list[float], cost: list[float], verifier: VerifierSpec, price: float) -> tuple[int, ...]:
        candidates = Candidates(range(2), p, cost, verifier, Dependence([1.0, 1.0]))
        return best_plans(candidates, Goal(failure_cost_usd=price)).best.models

    good, useless = VerifierSpec(0.99, 0.02), VerifierSpec(0.5, 0.5)
    assert plan([0.6, 0.9], [0.01, 1.0], good, 20.0) == (0, 1)  # a cascade
    assert plan([0.6, 0.9], [0.01, 1.0], useless, 20.0) == (1,)  # straight to the strong model
    assert plan([0.6, 0.9], [0.9, 1.0], good, 3.0) == (1,)  # the cheap one is not cheap
    assert plan([0.6, 0.9], [0.01, 1.0], good, 0.5) == (
        0,
    )  # one cheap call: a failure costs less than the strong model


def test_where_the_goal_names_a_last_resort_every_plan_holds_it() -> None:
    problem = Problem.random(np.random.default_rng(5), 5)
    for goal in (Goal(min_quality=0.1, last_resort=3), Goal(min_quality=1.0, last_resort=3)):
        plans = best_plans(problem.candidates(), goal)
        assert 3 in plans.best.models and plans.second is not None and 3 in plans.second.models
    # a budget that it does not fit into wins
    assert 3 not in best_plans(problem.candidates(), Goal(budget_usd=problem.cost[3] - 1e-9, last_resort=3)).best.models


def test_the_second_plan_begins_with_another_model_and_is_no_better() -> None:
    for seed in range(20):
        problem = Problem.random(np.random.default_rng(seed), 4)
        best, second = best_plans(problem.candidates(), Goal(failure_cost_usd=0.5))
        assert second is not None and second.models[0] != best.models[0] and second.loss(0.5) >= best.loss(0.5)
        forced = best_plans(problem.candidates(), Goal(failure_cost_usd=0.5), first=second.models[0]).best
        assert forced == second


def test_a_second_call_of_a_model_is_worth_what_its_answers_differ() -> None:
    p, cost = [0.6, 0.7], [0.05, 5.0]

    def plan(correlation: float) -> Plan:
        candidates = Candidates(range(2), p, cost, PERFECT, Dependence([0.5, 0.5], 0.0), retry_correlation=correlation)
        return best_plans(candidates, Goal(failure_cost_usd=2.0)).best

    assert plan(1.0).models == (0,)
    again = plan(0.3)
    assert again.models == (0, 0)
    # of those that failed, 70 % are drawn anew, at the rate that is left given the difficulty
    (right,), weights = Dependence([0.5], 0.0).given_difficulty([0], np.array([0.6]))
    assert again.p_success == pytest.approx(float(weights @ (right + (1 - right) * 0.7 * right)), abs=1e-9)
    assert plan(0.99).models == (0,)
    alone = Candidates([0], p[:1], cost[:1], PERFECT, Dependence([0.5, 0.5], 0.0), retry_correlation=0.3)
    assert best_plans(alone, Goal(failure_cost_usd=2.0)).best.models == (0, 0)


@pytest.mark.parametrize("n", [2, 6, 9, 16, 30])
def test_no_plan_is_below_the_clairvoyants_bound(n: int) -> None:
    rng = np.random.default_rng(n)
    for _ in range(10):
        candidates = Problem.random(rng, n).candidates()
        for price in (0.1, 1.0, 10.0):
            loss = best_plans(candidates, Goal(failure_cost_usd=price)).best.loss(price)
            assert loss >= lower_bound(candidates, price) - 1e-6


def test_where_difficulty_is_known_the_bound_is_what_the_best_plan_loses() -> None:
    problem = Problem.random(np.random.default_rng(3), 5)
    problem.loadings, problem.hopeless = [0.0] * 5, 0.0
    candidates = problem.candidates()
    for price in (0.1, 1.0, 10.0):
        best = best_plans(candidates, Goal(failure_cost_usd=price)).best
        assert best.loss(price) == pytest.approx(lower_bound(candidates, price), rel=1e-4)


def test_four_stages_of_many_candidates_lose_little_against_any_number() -> None:
    rng = np.random.default_rng(1)
    over = []
    for _ in range(8):
        candidates = Problem.random(rng, 8).candidates()
        for price in (0.1, 1.0, 10.0):
            right, weights, cost = (a.tolist() for a in (candidates.right, candidates.weights, candidates.cost))
            least = brute_force.least_loss(right, weights, cost, candidates.accept, price)
            loss = best_plans(candidates, Goal(failure_cost_usd=price)).best.loss(price)
            assert loss >= least - 1e-6
            over.append(loss / least - 1.0)
    assert np.mean(over) < 0.02 and max(over) < 0.15


def test_a_long_list_is_shortened_without_loss() -> None:
    rng = np.random.default_rng(1)
    over = []
    for _ in range(5):
        candidates = Problem.random(rng, MAX_CANDIDATES + 4).candidates()
        for price in (0.1, 1.0, 10.0):
            goal = Goal(failure_cost_usd=price)
            kept = shortlist(candidates, goal)
            assert len(kept) == MAX_CANDIDATES and kept == sorted(set(kept))
            every = Search(candidates, 3).best(goal).best.loss(price)
            over.append(best_plans(candidates, goal, max_stages=3).best.loss(price) / every - 1.0)
    assert max(over) < 0.01


@pytest.mark.parametrize("n", [3, MAX_CANDIDATES + 4])
def test_no_candidate_within_the_budget_is_an_error(n: int) -> None:
    with pytest.raises(NothingFitsError, match="within the budget"):
        best_plans(Problem.random(np.random.default_rng(0), n).candidates(), Goal(budget_usd=0.0))


@pytest.mark.parametrize("accept", [(1.0, 0.0), (0.95, 0.05)])
def test_of_the_likeliest_plans_the_cheapest_is_taken(accept: tuple[float, float]) -> None:
    """With a perfect check every order of the same models is as likely."""
    problem = Problem([0.8, 0.6, 0.5], [1.0, 0.05, 0.01], [1.0] * 3, 0.2, VerifierSpec(*accept))
    truth = problem.every_plan()
    plan = best_plans(problem.candidates(), Goal(min_quality=0.999)).best
    likeliest = max(p for _, p in truth.values())
    assert plan.p_success == pytest.approx(likeliest, abs=1e-5)
    least = min(cost for cost, p in truth.values() if p >= likeliest - 1e-6)
    assert plan.expected_cost_usd == pytest.approx(least, rel=1e-3)


def test_the_few_of_a_long_list_that_are_quick_enough_are_found() -> None:
    problem = Problem.random(np.random.default_rng(4), 30)
    goal = Goal(min_quality=0.9, max_latency_s=2.0)
    left_out = set(range(30)) - set(shortlist(problem.candidates(), goal))
    seconds = [1.0 if i in left_out else 9.0 for i in range(30)]
    assert set(best_plans(problem.candidates(latency_s=seconds), goal).best.models) <= left_out


def test_a_second_plan_is_there_where_none_of_the_others_is_likely_enough() -> None:
    candidates = Problem([0.9, 0.3, 0.2], [1.0, 0.1, 0.1], [1.0] * 3, 0.2, VerifierSpec(0.5, 0.5)).candidates()
    best, second = best_plans(candidates, Goal(min_quality=0.88))
    assert best.models == (0,) and second is not None and second.models[0] != 0 and second.p_success < 0.88


@given(st.lists(st.tuples(st.floats(1e-4, 1 - 1e-4), st.floats(0.0, 10.0)), min_size=1, max_size=6))
@settings(deadline=None, max_examples=40)
def test_the_mean_over_difficulty_is_the_probability_that_came(pairs: list[tuple[float, float]]) -> None:
    p = np.array([p for p, _ in pairs])
    for hopeless in (0.0, 0.3, 1.0):
        right, weights = Dependence([b for _, b in pairs], hopeless).given_difficulty(range(len(pairs)), p)
        assert ((right >= 0.0) & (right <= 1.0)).all() and (np.diff(right[:, :-1], axis=1) >= -1e-9).all()
        assert weights.sum() == pytest.approx(1.0) and weights[-1] == pytest.approx(hopeless * (1.0 - p.max()))
        assert right @ weights == pytest.approx(p, abs=1e-6)
