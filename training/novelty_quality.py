"""Lines of the quality table: are requests unlike the training data recognised?

Requests of another table stand for requests unlike the training data; requests of the same table that were held out
from everything stand for those like it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from router_ml.classifier import UNLIKE_RATE
from router_ml.embedding import Encoder
from router_ml.features import FEATURE_NAMES
from training.estimator import RequestMap
from training.fitting import represent_table
from training.novelty import nearness, novelty_scale
from training.outcome_table import OutcomeTable, group_folds
from training.quality_rows import Row

NOVELTY = "novelty"  # in place of a table's name
TARGET = 0.60
SAMPLE = 1_000  # requests of another table that are looked at


class Flagged(NamedTuple):
    """What a router trained on one table flags: of ``n`` held-out requests of its own, and of each other table."""

    own: float
    n: int
    others: dict[str, float]


def flagged_shares(tables: Mapping[str, OutcomeTable], encoder: Encoder, *, seed: int = 0) -> dict[str, Flagged]:
    """For each table, the shares flagged by a map fitted on four fifths of it.

    :param tables: name -> table, at least two.
    """
    rng = np.random.default_rng(seed)
    inputs = {name: represent_table(table, encoder).joined for name, table in tables.items()}
    few = {name: X[rng.permutation(len(X))[:SAMPLE]] for name, X in inputs.items()}
    out = {}
    for name, X in inputs.items():
        group = np.asarray(tables[name].group)
        fold = group_folds(group.tolist(), 5, seed)
        rest, held_out = fold != 0, fold == 0
        fitted = RequestMap(random_state=seed).fit(X[rest], n_features=len(FEATURE_NAMES))
        scale = novelty_scale(fitted, X[rest], group[rest].tolist(), seed)
        limit = scale.quantiles[round(UNLIKE_RATE * (len(scale.quantiles) - 1))]

        def share(
            Z: NDArray[np.float32], fitted: RequestMap = fitted, weight: float = scale.residual_weight,
            limit: float = limit,
        ) -> float:  # fmt: skip
            return float((nearness(fitted, Z, weight) < limit).mean())

        others = {other: share(Z) for other, Z in few.items() if other != name}
        out[name] = Flagged(share(X[held_out]), int(held_out.sum()), others)
    return out


def novelty_rows(tables: Mapping[str, OutcomeTable], encoder: Encoder, *, seed: int = 0) -> Iterator[Row]:
    """Mean and least share of another table's requests that are flagged, over ordered pairs, and a line per table."""
    found = flagged_shares(tables, encoder, seed=seed)
    pairs = {(name, other): share for name, row in found.items() for other, share in row.others.items()}
    mean = float(np.mean(list(pairs.values())))
    (trained, other), least = min(pairs.items(), key=lambda entry: entry[1])
    reached = sum(share >= TARGET for share in pairs.values())
    yield Row(
        NOVELTY, f"another table's requests flagged as unlike, at a rate of {UNLIKE_RATE:.0%}", mean,
        f">= {TARGET:.2f}", mean >= TARGET,
        note=f"mean over {len(pairs)} ordered pairs, {reached} of them reach it; least {least:.2f}: "
        f"trained on {trained}, requests of {other}",
    )  # fmt: skip
    n = sum(row.n for row in found.values())
    own = sum(row.own * row.n for row in found.values()) / n
    yield Row(NOVELTY, "requests like the training data flagged", own, note=f"n = {n:,} held-out requests")
    for name, row in found.items():
        each = ", ".join(f"{other} {share:.2f}" for other, share in row.others.items())
        mean = float(np.mean(list(row.others.values())))
        yield Row(NOVELTY, f"trained on {name}", mean, note=f"{each}; its own {row.own:.3f} (n = {row.n:,})")
