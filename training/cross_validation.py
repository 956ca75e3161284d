"""Predictions for rows that were not fitted on, two ways.

``cross_validate`` fits the estimators alone, fold by fold, on requests represented once: what the method is worth on a
table. ``judge_held_out`` trains whole routers and lets them decide, guards, prices and all: what the manifest of a
router says of it.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from router_ml.embedding import Encoder
from router_ml.errors import TableError
from router_ml.pool import ModelPool
from training.evaluation import N_FOLDS
from training.fitting import fit, represent_table, success_rates, train_router
from training.judging import Judged, judge_router, requests_of
from training.metrics import successes
from training.outcome_table import OutcomeTable, group_folds
from training.simpler import BASE_RATES, POLICIES, ROUTER

CROSS_VALIDATED = 5_000  # requests up to which every fold is held out once; above, one fold is
FEWEST_GROUPS = 10  # a fold held out, and inner folds of what is left
JUDGED_SAMPLE = 20_000  # requests looked at for metrics; of a larger table, a sample


def cross_validate(table: OutcomeTable, encoder: Encoder, *, n_folds: int = N_FOLDS, seed: int = 0) -> Judged:
    """Out-of-fold predictions of the estimators for every request of a table.

    Features and embeddings do not depend on outcomes and are computed once.

    :raises TableError: if there are fewer groups than folds.
    """
    fold = group_folds(table.group, n_folds, seed)
    score, cost = table.dense("score"), table.dense("cost_usd")
    representation = represent_table(table, encoder)
    p, c = np.zeros(score.shape), np.zeros(score.shape)
    for held_out in range(n_folds):
        rest, rows = np.flatnonzero(fold != held_out), np.flatnonzero(fold == held_out)
        fitted = fit(
            representation.select(rest), score[rest], cost[rest],
            [table.task[i] for i in rest], [table.group[i] for i in rest], seed,
        )  # fmt: skip
        p[rows], c[rows] = fitted.predict(representation.select(rows), [table.task[i] for i in rows])
    return Judged(
        models=table.models,
        success=successes(score),
        score=score,
        cost=cost,
        p=p,
        c=c,
        requests=requests_of(table, representation),
        group=table.group_codes,
        fold=fold,
    )


def judge_held_out(
    table: OutcomeTable, *, pool: ModelPool, encoder: Encoder, seed: int = 0
) -> tuple[dict[str, Judged], str]:
    """Train routers and simpler policies on part of a table and let each decide the requests it has not seen.

    Up to ``CROSS_VALIDATED`` requests every fold is held out once; above, one fold is, and of more than
    ``JUDGED_SAMPLE`` requests a sample stands for the table. Groups stay together.

    :return: the predictions of each policy of ``simpler.POLICIES`` (no table by task where no request has one), and a
        sentence that says how they were made.
    :raises TableError: if there are fewer than ``FEWEST_GROUPS`` groups.
    """
    n_groups = len(set(table.group))
    if n_groups < FEWEST_GROUPS:
        problem = (
            f"{n_groups} independent requests (groups); expected at least {FEWEST_GROUPS}, of which some are held out"
        )
        raise TableError("train", [problem])
    n_requests = table.n_requests
    if n_requests > JUDGED_SAMPLE:
        shares = min(n_groups, -(-table.n_requests // JUDGED_SAMPLE))
        table = table.select_requests(group_folds(table.group, shares, seed) == 0)
    fold = group_folds(table.group, N_FOLDS, seed)
    folds = range(N_FOLDS) if table.n_requests <= CROSS_VALIDATED else range(1)
    policies = POLICIES if any(task is not None for task in table.task) else (BASE_RATES, ROUTER)
    parts: dict[str, list[Judged]] = {policy: [] for policy in policies}
    with tempfile.TemporaryDirectory() as scratch:
        for held_out in folds:
            rest = table.select_requests(fold != held_out)
            router = train_router(rest, Path(scratch) / str(held_out), pool=pool, encoder=encoder, seed=seed)
            rates = success_rates(rest, router.pool)
            for policy, judged in parts.items():
                simple = None if policy == ROUTER else rates.replace_in(router.classifier, policy)
                judge = router if simple is None else router.with_classifier(simple)
                judged.append(judge_router(judge, table.select_requests(fold == held_out)))
    of = f"{table.n_requests} requests, groups kept together"
    if n_requests > table.n_requests:
        of += f", a sample of {n_requests}"
    if len(folds) > 1:
        together = {policy: Judged.concat(judged) for policy, judged in parts.items()}
        return together, f"{N_FOLDS}-fold cross-validation over {of}"
    return {policy: judged[0] for policy, judged in parts.items()}, f"one fold of {N_FOLDS} held out of {of}"
