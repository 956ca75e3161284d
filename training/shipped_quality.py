"""Lines of the quality table: what training would ship is not worse than no router.

Nested cross-validation: in each outer fold the policy is chosen by cross-validation of the other folds alone, fitted on
them, and judged on the fold that nothing has seen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from router_ml.embedding import Encoder
from training.baselines import RandomMixture, out_of_fold
from training.cost_quality import complete_grid
from training.cross_validation import cross_validate
from training.dependence import FittedDependence, fit_dependence
from training.judging import Judged
from training.metrics import IntArray
from training.outcome_table import OutcomeTable
from training.quality_rows import Row
from training.shipping import choose_policy, compare_policies, simpler_policies
from training.simpler import NAMES, ROUTER

MIXTURE = "random_mixture"


class Nested(NamedTuple):
    """Predictions of what would be shipped, chosen without the rows predicted.

    :param chosen: how often each policy was. :param dependence: of each outer fold, learned with what is shipped there.
    """

    judged: Judged
    chosen: Counter[str]
    dependence: list[FittedDependence]


def nested_choice(table: OutcomeTable, judged: Judged, encoder: Encoder, seed: int = 0) -> Nested:
    """Choose what to ship in each outer fold by cross-validation of the others.

    :param judged: the table's own cross-validation: its outer folds.
    """
    policies = simpler_policies(judged)
    p, chosen, dependence = np.zeros_like(judged.p), Counter[str](), []
    for held_out in np.unique(np.asarray(judged.fold)):
        rows: IntArray = np.flatnonzero(judged.fold == held_out)
        inner = cross_validate(table.select_requests(np.asarray(judged.fold) != held_out), encoder, seed=seed)
        inner_policies = simpler_policies(inner)
        policy = choose_policy(inner_policies, seed=seed).policy
        p[rows] = policies[policy].p[rows]
        chosen[policy] += 1
        dependence.append(fit_dependence(inner.success, inner_policies[policy].p, seed))
    return Nested(replace(judged, p=p), chosen, dependence)


def shipped_rows(name: str, nested: Nested, judged: Judged, *, seed: int = 0, n_boot: int = 1000) -> Iterator[Row]:
    """What would be shipped against the mixture of constant models and against each policy. Only for priced tables.

    :param judged: the router's own predictions, in the same folds.
    """
    rows, priced = complete_grid(judged.score, judged.cost)
    if not rows.any() or priced.sum() < 2:
        return
    shipped, chosen = nested.judged, nested.chosen
    fold: IntArray = np.asarray(judged.fold, dtype=np.intp)
    mixture = out_of_fold(RandomMixture, judged.requests, judged.success, judged.cost, fold)
    others = {MIXTURE: replace(judged, p=mixture.p, c=mixture.c), **simpler_policies(judged)}
    folds = shipped_in(chosen)
    for other, predictions in others.items():
        if other == ROUTER:  # it need not be level with what it was found not to beat
            continue
        found = compare_policies(shipped, predictions, n_boot=n_boot, seed=seed).area
        assert found is not None  # the grid has complete rows
        yield Row(
            name, f"area of what is shipped: lead over {NAMES.get(other, 'the random mixture')}", found.difference,
            "not below, whole interval", found.high >= 0,
            found.low, found.high, f"n = {found.n:,}; outer folds that ship: {folds}",
        )  # fmt: skip


def shipped_in(chosen: Counter[str]) -> str:
    """How many outer folds ship what, in words."""
    return ", ".join(f"{NAMES[policy]} in {count}" for policy, count in chosen.most_common())
