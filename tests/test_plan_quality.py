"""Plans carried out on recorded outcomes, and the lines of the quality table that come of it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from router_ml.plan import Plan
from router_ml.request import VerifierSpec
from training.cross_validation import cross_validate
from training.dependence import fit_dependence
from training.fitting import default_encoder
from training.judging import Judged
from training.plan_quality import ALIKE, Outcomes, carry_out, plan_all, plan_rows, planner_rows
from training.simulate import World


@pytest.fixture(scope="module")
def judged() -> Judged:
    return cross_validate(World(7).sample(120).table, default_encoder())


@pytest.fixture(scope="module")
def outcomes(judged: Judged) -> Outcomes:
    found = Outcomes.of(judged, [fit_dependence(judged.success, judged.p)] * 5)
    assert found is not None
    return found


def plans_of(*models: tuple[int, ...]) -> Iterator[list[Plan]]:
    while True:
        yield [Plan(m, 0.5, 1.0, (1.0,) * len(m), (0.5,) * len(m)) for m in models]


def carried_out(outcomes: Outcomes, models: tuple[int, ...], verifier: VerifierSpec) -> tuple[np.ndarray, np.ndarray]:
    n = len(outcomes.cost)
    done = carry_out([plan for plan, _ in zip(plans_of(models), range(n), strict=False)], outcomes, verifier)
    return done.cost[0], done.success[0]


def test_with_a_perfect_verifier_the_first_right_answer_ends_the_plan(outcomes: Outcomes) -> None:
    cost, success = carried_out(outcomes, (0, 3, 2), VerifierSpec(1.0, 0.0))
    right = outcomes.success[:, [0, 3, 2]] > 0
    spent = outcomes.cost[:, [0, 3, 2]]
    assert success == pytest.approx(right.any(axis=1).astype(float))
    second, third = ~right[:, 0], ~right[:, 0] & ~right[:, 1]
    assert cost == pytest.approx(spent[:, 0] + second * spent[:, 1] + third * spent[:, 2])


def test_with_a_noisy_verifier_it_is_what_the_rates_say_on_average(outcomes: Outcomes) -> None:
    verifier = VerifierSpec(0.9, 0.2)
    cost, success = carried_out(outcomes, (0, 2), verifier)
    first, second = outcomes.success[:, 0], outcomes.success[:, 2]
    accepted = np.where(first > 0, 0.9, 0.2)
    assert success.mean() == pytest.approx((accepted * first + (1 - accepted) * second).mean(), abs=0.03)
    assert cost.mean() == pytest.approx((outcomes.cost[:, 0] + (1 - accepted) * outcomes.cost[:, 2]).mean(), rel=0.1)


def test_every_goal_gets_a_plan_and_the_default_one_holds_the_best_model(outcomes: Outcomes) -> None:
    plans = plan_all(outcomes, VerifierSpec(0.95, 0.05))
    assert len({len(of_request) for of_request in plans}) == 1
    assert all(outcomes.best in of_request[ALIKE].models for of_request in plans)


def test_the_lines_are_there_and_promises_are_kept_in_a_world_like_the_trained_one(judged: Judged) -> None:
    rows = list(plan_rows("t", judged, [fit_dependence(judged.success, judged.p)] * 5))
    assert [row.what.partition(":")[0] for row in rows] == [
        "plans, verifier 1/0", "plans, verifier 1/0", "plans, verifier 0.95/0.05", "plans, verifier 0.95/0.05",
        "plans, verifier 0.9/0.2", "plans, verifier 0.9/0.2", "no verifier", "no verifier",
    ]  # fmt: skip
    perfect, noisy = rows[0], rows[4]
    assert perfect.value is not None and noisy.value is not None and 0.0 < perfect.value <= noisy.value
    for row in rows[1:6:2]:
        promised, kept = (float(part.split()[1].rstrip(",")) for part in row.note.partition("; ")[2].split(", ")[:2])
        assert kept == pytest.approx(promised, abs=0.1)


def test_a_table_without_prices_has_no_lines(judged: Judged) -> None:
    import dataclasses

    free = dataclasses.replace(judged, cost=np.full_like(judged.cost, np.nan))
    assert list(plan_rows("t", free, [])) == []


def test_the_planner_is_held_against_brute_force() -> None:
    (loss,) = planner_rows(6)
    assert loss.reached and loss.value is not None and loss.value <= 0.001
