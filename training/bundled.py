"""The bundled router: learned from public outcome tables, placed on models that none of them holds.

``fit_bundled`` makes the pieces, ``leave_one_source_out`` says what they are worth on a source that nobody has seen:
the day-0 figures. A table left out takes everything with it that is made of it: published results that place models on
it, and training requests whose text it shares.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml  # type: ignore[import-untyped]
from numpy.typing import NDArray

from router_ml.classifier import sigmoid
from router_ml.embedding import Encoder
from router_ml.features import FEATURE_NAMES
from router_ml.pool import ModelPool
from router_ml.request import RouteRequest, read_trace
from training.ability import LEAKING_KEYS, canonical_names, fit_abilities
from training.answer_length import AnswerLength, fit_answer_length
from training.estimator import CostEstimator, RequestMap, SuccessEstimator
from training.fitting import represent
from training.metrics import expected_calibration_error, mean_auc, successes
from training.outcome_table import OutcomeTable, read_table
from training.placement import attenuate, place, place_length, placement_of
from training.transfer import Source, TransferModel, fit_transfer

Array = NDArray[np.float64]

WRITTEN_PATH = Path(__file__).with_name("written_requests.yaml")
WRITTEN = "written"
WRITTEN_WEIGHT = 2.0  # tables: the written requests are the only ones that look like daily work
TRAINING_SOURCES = ("bfcl", "routerbench", "mmlupro", "zeroeval", "llmrouter_uiuc")
# Shown for information: its licence does not allow training on it.
FURTHER_SOURCES = ("swebench_bash",)
# Published comparisons are made on these, so nothing here may learn from them.
NEVER_TRAINED_TASKS = frozenset({"mmlu", "gsm8k"})
# Which field of ability a table's tasks ask for: the task's own entry, or the source's.
FIELD_OF_TASK = {
    "bfcl": "tools", "mbpp": "code", "human_eval": "code", "crux": "code", "swebench_bash": "code", "math-l5": "math",
    "math": "math", "gsm8k": "math", "agentverse-logicgrid": "math", "commongen": "general", "winogrande": "general",
    "commonsense_qa": "general", "mmlupro": "knowledge", "routerbench": "knowledge", "llmrouter_uiuc": "knowledge",
}  # fmt: skip
SMALL_MODEL, LARGE_MODEL = "llama-3.1-8b-instruct", "gpt-4o-2024-05-13"  # whom the written estimates are about
TASK_WEIGHT = 10.0  # of one task or written kind in answer length, as if it had so many requests
SHINGLE_WORDS = 10
SHARED_TEXT = 0.3  # of its distinctive shingles: a request that shares more with another source is the same request
COMMON_SHINGLE = 3  # requests; shingles of more are a template, not a request


@dataclass(frozen=True, eq=False)
class PublicTable:
    """A source with what judging it and measuring answers needs.

    :param texts: (n,) what the user said. :param output_tokens: (n,) of a typical model, NaN where unknown.
    """

    source: Source
    texts: Sequence[str]
    output_tokens: Array


@dataclass(frozen=True)
class SourceRow:
    """How well a source was predicted without having been seen.

    :param auc: mean over models of the AUC over requests. :param ece: calibration error, 15 bins, all cells.
    :param predicted: mean P. :param observed: success rate. :param shift: log odds by which the source as a whole
        differs from what was predicted. :param counted: whether the day-0 figures average over it.
    """

    source: str
    n_requests: int
    n_models: int
    auc: float
    ece: float
    predicted: float
    observed: float
    shift: float
    counted: bool


class Bundled(NamedTuple):
    """The pieces of the bundled router; ``metadata`` is JSON-ready."""

    request_map: RequestMap
    success: SuccessEstimator
    length: CostEstimator
    metadata: dict[str, Any]


def public_table(name: str, table: OutcomeTable, encoder: Encoder, facts: Mapping[str, Any]) -> PublicTable:
    """Make an outcome table ready to learn from.

    :param name: the table's name among the aliases of the facts.
    :raises PoolError: if the facts do not know one of its models.
    """
    tasks = np.array([task or name for task in table.task])
    fields = np.array([FIELD_OF_TASK.get(t, FIELD_OF_TASK.get(name, "general")) for t in tasks.tolist()])
    inputs = represent(table.prompts, encoder).joined
    models = canonical_names(facts, name, table.models)
    source = Source(name, inputs, successes(table.dense("score")), models, tasks, fields)
    tokens = table.dense("output_tokens")
    known = (tokens > 0).any(axis=1)
    middle = np.full(len(tokens), np.nan)
    middle[known] = np.nanmedian(np.where(tokens[known] > 0, tokens[known], np.nan), axis=1)
    texts = [read_trace(RouteRequest(prompt)).user_text for prompt in table.prompts]
    return PublicTable(source, texts, middle)


def written_table(encoder: Encoder, path: Path = WRITTEN_PATH) -> PublicTable:
    """The stated prior as one more source: two models, success probabilities in place of outcomes."""
    kinds: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))["kinds"]
    rows = [(name, kind, text) for name, kind in kinds.items() for text in kind["requests"]]
    texts = [text for _, _, text in rows]
    source = Source(
        WRITTEN,
        represent(texts, encoder).joined,
        np.array([[kind["p_small"], kind["p_large"]] for _, kind, _ in rows]),
        (SMALL_MODEL, LARGE_MODEL),
        np.array([name for name, _, _ in rows]),
        np.array([kind["field"] for _, kind, _ in rows]),
        WRITTEN_WEIGHT,
    )
    return PublicTable(source, texts, np.array([float(kind["output_tokens"]) for _, kind, _ in rows]))


def fit_bundled(
    tables: Sequence[PublicTable], written: PublicTable, pool: ModelPool, facts: Mapping[str, Any], *, seed: int = 0,
    day_0: Sequence[SourceRow] | None = None,
) -> Bundled:  # fmt: skip
    """Learn from the tables and the written requests, and place the pool.

    :param tables: tables that may be trained on.
    :param day_0: what ``leave_one_source_out`` gave for these tables; None: it is run here.
    :raises PoolError: if the facts do not know a model of the pool.
    """
    rows = list(day_0) if day_0 is not None else leave_one_source_out(tables, written, facts, seed=seed)
    trained = [*map(_trainable, tables), written]
    scale = fit_abilities(facts)
    model = _fit(trained, facts, frozenset(), seed)
    placements = [placement_of(spec, facts, scale) for spec in pool.models]
    shift = _shift_variance(rows)
    metadata = {
        "sources": {t.source.name: len(t.source.inputs) for t in trained},
        "shift_variance": shift,
        "abilities": {spec.name: p.ability for spec, p in zip(pool.models, placements, strict=True)},
        "day_0": {**day_0_figures(rows), "sources": [asdict(row) for row in rows]},
    }
    return Bundled(
        model.request_map,
        place(pool, model, placements, shift),
        place_length(_answer_length(trained, model), placements),
        metadata,
    )


def leave_one_source_out(
    tables: Sequence[PublicTable], written: PublicTable | None, facts: Mapping[str, Any],
    further: Sequence[PublicTable] = (), *, seed: int = 0,
) -> list[SourceRow]:  # fmt: skip
    """Judge each table by a model that has not seen it.

    How unsure to be of a new source is estimated inside: by leaving out, in turn, each table that is left.

    :param written: None: without the stated prior, from the tables alone.
    :param further: tables to judge but never to learn from.
    :return: one row per table, those of ``further`` last and not counted.
    """
    extra = [] if written is None else [written]
    judged = [(t, True) for t in tables] + [(t, False) for t in further]
    rows = []
    for held_out, counted in judged:
        ignore = LEAKING_KEYS.get(held_out.source.name, frozenset())
        rest = [_apart_from(_trainable(t), held_out) for t in tables if t is not held_out]
        inner = [_judge(t, _without(rest, t) + extra, facts, ignore, 0.0, seed, True) for t in rest]
        rows.append(_judge(held_out, rest + extra, facts, ignore, _shift_variance(inner), seed, counted))
    return rows


def day_0_figures(rows: Sequence[SourceRow]) -> dict[str, float]:
    """Means over the sources that count."""
    counted = [row for row in rows if row.counted]
    return {
        "auc": float(np.mean([row.auc for row in counted])),
        "ece": float(np.mean([row.ece for row in counted])),
        "n_sources": float(len(counted)),
    }


def read_public_tables(
    folder: Path, encoder: Encoder, facts: Mapping[str, Any], names: Sequence[str] = TRAINING_SOURCES
) -> list[PublicTable]:
    """Read and represent tables by name.

    :raises TableError: if one is missing or breaks the contract.
    """
    return [public_table(name, read_table(folder / f"{name}.parquet"), encoder, facts) for name in names]


def _judge(
    held_out: PublicTable, training: Sequence[PublicTable], facts: Mapping[str, Any], ignore: Collection[str],
    shift: float, seed: int, counted: bool,
) -> SourceRow:  # fmt: skip
    ignore = frozenset(ignore) | LEAKING_KEYS.get(held_out.source.name, frozenset())
    model = _fit(training, facts, ignore, seed)
    scale = fit_abilities(facts, ignore)
    source = held_out.source
    ability = np.array([scale.ability[name] for name in source.models])
    spread = np.array([scale.spread[name] for name in source.models])
    z = model.log_odds(source.inputs, ability)
    p = sigmoid(z * attenuate(model.slope[0] ** 2 * spread**2 + shift))
    known = ~np.isnan(source.success)
    return SourceRow(
        source.name, len(p), p.shape[1], mean_auc(source.success, p).value,
        expected_calibration_error(source.success, p), float(p[known].mean()), float(source.success[known].mean()),
        _common_shift(z[known], source.success[known]), counted,
    )  # fmt: skip


def _fit(
    training: Sequence[PublicTable], facts: Mapping[str, Any], ignore: Collection[str], seed: int
) -> TransferModel:  # fmt: skip
    ability = fit_abilities(facts, ignore).ability
    sources = [t.source for t in training]
    return fit_transfer(
        sources, [np.array([ability[name] for name in s.models]) for s in sources],
        n_features=len(FEATURE_NAMES), seed=seed,
    )  # fmt: skip


def _common_shift(z: Array, y: Array) -> float:
    """The constant that, added to the log odds, makes the mean prediction equal the success rate."""
    low, high = -10.0, 10.0
    for _ in range(50):
        middle = (low + high) / 2.0
        low, high = (middle, high) if sigmoid(z + middle).mean() < y.mean() else (low, middle)
    return (low + high) / 2.0


def _shift_variance(rows: Sequence[SourceRow]) -> float:
    return float(np.mean([row.shift**2 for row in rows if row.counted]))


def _answer_length(trained: Sequence[PublicTable], model: TransferModel) -> AnswerLength:
    """Written kinds count equally; a table's task counts as much as one kind."""
    with_tokens = [t for t in trained if not np.isnan(t.output_tokens).all()]
    weights = []
    for t in with_tokens:
        _, codes, counts = np.unique(t.source.tasks, return_inverse=True, return_counts=True)
        weights.append(TASK_WEIGHT / counts[codes])
    return fit_answer_length(
        [model.request_map.transform(t.source.inputs) for t in with_tokens],
        [t.output_tokens for t in with_tokens],
        weights,
    )


def _trainable(table: PublicTable) -> PublicTable:
    return _take(table, ~np.isin(table.source.tasks, sorted(NEVER_TRAINED_TASKS)))


def _apart_from(table: PublicTable, held_out: PublicTable) -> PublicTable:
    return _take(table, ~_shares_text(table.texts, held_out.texts))


def _without(tables: Sequence[PublicTable], left_out: PublicTable) -> list[PublicTable]:
    return [_apart_from(t, left_out) for t in tables if t is not left_out]


def _take(table: PublicTable, rows: NDArray[np.bool_]) -> PublicTable:
    if rows.all():
        return table
    kept = [text for text, keep in zip(table.texts, rows.tolist(), strict=True) if keep]
    return PublicTable(table.source.take(rows), kept, table.output_tokens[rows])


def _shares_text(texts: Sequence[str], others: Sequence[str]) -> NDArray[np.bool_]:
    """(n,) whether a request is one of the others, up to its preamble: shared runs of words (Broder 1997)."""
    ours, theirs = list(_distinctive_shingles(texts)), set[int]()
    theirs.update(*_distinctive_shingles(others))
    return np.array([len(s & theirs) > SHARED_TEXT * len(s) if s else False for s in ours], dtype=bool)


def _distinctive_shingles(texts: Sequence[str]) -> Iterator[set[int]]:
    each = []
    for text in texts:
        words = re.findall(r"[a-z0-9]+", text.lower())
        each.append({hash(tuple(words[i : i + SHINGLE_WORDS])) for i in range(len(words) - SHINGLE_WORDS + 1)})
    count = Counter(shingle for shingles in each for shingle in shingles)
    for shingles in each:
        yield {shingle for shingle in shingles if count[shingle] <= COMMON_SHINGLE}
