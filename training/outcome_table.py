"""The outcome table: which model was tried on which request, did it succeed, what did it cost.

One row per (request, model); sparse tables are as good as full ones. ``read_table`` reads Parquet, CSV and JSON lines::

    table = read_table(["march.parquet", "april.jsonl"])
    score = table.dense("score")                      # (n_requests, n_models), NaN where a model was not tried
    fold = group_folds(table.group, n_folds=5, seed=0)
    train = table.select_requests(fold != 0)

A table that breaks the contract is refused with every bad row named by file, row number and column. A request may be
given as ``prompt`` or as ``messages``; where a row has both, ``messages`` is the request.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import os
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from router_ml.errors import TableError
from training.outcome_checks import LABELS, check_rows
from training.outcome_columns import (
    NUMBER_COLUMNS,
    ColumnSet,
    FloatArray,
    IntArray,
    Prompt,
    columns_of_lists,
)
from training.outcome_files import read_columns, write_columns
from training.outcome_stored import VECTOR_COLUMNS, Stored

CHUNK_REQUESTS = 10_000


@dataclass(frozen=True, eq=False, slots=True)
class OutcomeTable:
    """Outcomes in columns: texts and labels once per request, numbers once per row.

    Rows are sorted by request, then model; requests stand in the order of their first row. NaN is null.

    :param request_ids: (n_requests,) unique.
    :param prompts: (n_requests,) the prompt, or OpenAI-style messages; "" where it was not logged and ``stored`` holds
        what the classifier saw of it.
    :param task: (n_requests,) or None where unknown; ``source`` and ``segment`` likewise.
    :param group: (n_requests,) requests of one group never fall on both sides of a split; by default the request's id.
    :param models: sorted names; ``model`` indexes them.
    :param request: (n_rows,) int32 index of the request. :param model: (n_rows,) int16 index of the model.
    :param score: (n_rows,) in [0, 1], never NaN. :param cost_usd: (n_rows,) USD. :param latency_s: (n_rows,) seconds.
    :param timestamp: (n_rows,) seconds since 1970, UTC.
    :param propensity: (n_rows,) probability in (0, 1] with which the logged policy chose this model.
    """

    request_ids: list[str]
    prompts: list[Prompt]
    task: list[str | None]
    source: list[str | None]
    group: list[str]
    segment: list[str | None]
    models: tuple[str, ...]
    request: npt.NDArray[np.int32]
    model: npt.NDArray[np.int16]
    score: FloatArray
    cost_usd: FloatArray
    input_tokens: FloatArray
    output_tokens: FloatArray
    latency_s: FloatArray
    turns: FloatArray
    tool_calls: FloatArray
    timestamp: FloatArray
    propensity: FloatArray
    stored: Stored | None = None

    def __post_init__(self) -> None:
        sizes = {name: len(getattr(self, name)) for name in ("prompts", *LABELS)}
        sizes |= {} if self.stored is None else {"stored": len(self.stored.row)}
        lengths = {name: len(getattr(self, name)) for name in ("model", *NUMBER_COLUMNS)}
        wrong = [f"{name} has {n}; expected {self.n_requests}" for name, n in sizes.items() if n != self.n_requests]
        wrong += [f"{name} has {n}; expected {self.n_rows}" for name, n in lengths.items() if n != self.n_rows]
        if wrong:
            raise TableError("OutcomeTable", wrong)

    @property
    def n_requests(self) -> int:
        return len(self.request_ids)

    @property
    def n_rows(self) -> int:
        return len(self.request)

    @property
    def group_codes(self) -> IntArray:
        """(n_requests,) the group as an integer, numbered in order of appearance."""
        return _codes_in_order(self.group)

    def dense(self, column: str) -> FloatArray:
        """One numeric column as a (n_requests, n_models) float64 array, NaN where there is no row or the value is null.

        :raises TableError: if ``column`` is not numeric.
        """
        if column not in NUMBER_COLUMNS:
            raise TableError("dense", [f"{column!r} is not a numeric column; expected one of {list(NUMBER_COLUMNS)}"])
        out = np.full((self.n_requests, len(self.models)), np.nan)
        out[self.request, self.model] = getattr(self, column)
        return out

    def select_requests(self, chosen: npt.NDArray[Any] | Sequence[int] | Sequence[bool]) -> OutcomeTable:
        """The table of some requests. All models stay, so that columns of ``dense`` keep their meaning.

        :param chosen: (n_requests,) boolean mask, or distinct indices, whose order the new table follows.
        :raises TableError: if the mask has another length, or an index is out of range or given twice.
        """
        indices = self._indices(np.asarray(chosen))
        new_index = np.full(self.n_requests, -1, dtype=np.int32)
        new_index[indices] = np.arange(len(indices), dtype=np.int32)
        rows = np.flatnonzero(new_index[self.request] >= 0)
        rows = rows[np.argsort(new_index[self.request[rows]], kind="stable")]
        wanted = indices.tolist()
        return OutcomeTable(
            request_ids=[self.request_ids[i] for i in wanted],
            prompts=[self.prompts[i] for i in wanted],
            task=[self.task[i] for i in wanted],
            source=[self.source[i] for i in wanted],
            group=[self.group[i] for i in wanted],
            segment=[self.segment[i] for i in wanted],
            models=self.models,
            request=new_index[self.request[rows]],
            model=self.model[rows],
            **{name: getattr(self, name)[rows] for name in NUMBER_COLUMNS},
            stored=None if self.stored is None else self.stored.select(indices),
        )

    def _indices(self, chosen: npt.NDArray[Any]) -> IntArray:
        n = self.n_requests
        if chosen.dtype == np.bool_:
            if chosen.shape != (n,):
                raise TableError("select_requests", [f"the mask has shape {chosen.shape}; expected ({n},)"])
            return np.flatnonzero(chosen)
        if chosen.size == 0:
            return np.empty(0, dtype=np.int64)
        if chosen.ndim != 1 or not np.issubdtype(chosen.dtype, np.integer):
            raise TableError("select_requests", ["expected a boolean mask or a list of integer indices"])
        if chosen.min() < 0 or chosen.max() >= n or len(np.unique(chosen)) != len(chosen):
            raise TableError("select_requests", [f"indices must be distinct and lie in 0..{n - 1}"])
        return chosen.astype(np.int64)

    def fingerprint(self) -> str:
        """SHA-256, in hex, of everything the table holds: equal tables have equal fingerprints on any machine."""
        digest = hashlib.sha256()
        for texts in (self.request_ids, self.prompts, *(getattr(self, name) for name in LABELS), [list(self.models)]):
            for start in range(0, len(texts), CHUNK_REQUESTS):
                digest.update(json.dumps(texts[start : start + CHUNK_REQUESTS], sort_keys=True).encode() + b"\n")
        digest.update(self.request.astype("<i4").tobytes() + self.model.astype("<i2").tobytes())
        for name in NUMBER_COLUMNS:
            values = getattr(self, name).astype("<f8") + 0.0  # -0.0 becomes 0.0
            values[np.isnan(values)] = np.nan  # NaN has many bit patterns
            digest.update(values.tobytes())
        if self.stored is not None:
            digest.update(self.stored.digested())
        return digest.hexdigest()

    @classmethod
    def concat(cls, tables: Sequence[OutcomeTable]) -> OutcomeTable:
        """All rows of several tables as one.

        :raises TableError: if they contradict each other: one request_id with two prompts, a (request, model) twice.
        """
        return _assemble([_columns_of(table, f"table {i}") for i, table in enumerate(tables, start=1)])


def read_table(paths: Sequence[str | os.PathLike[str]] | str | os.PathLike[str]) -> OutcomeTable:
    """Read one table from one or several files: ``.parquet``, ``.csv``, ``.jsonl``, ``.ndjson``.

    Columns that the contract does not name are left out.

    :raises TableError: with every bad row of every file, if a file cannot be read or breaks the contract.
    """
    several = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    return _assemble([read_columns(Path(path)) for path in several])


def from_columns(columns: Mapping[str, Sequence[Any] | npt.NDArray[Any]], where: str = "table") -> OutcomeTable:
    """Make a table from columns in memory, checked like a file: one value per (request, model) row, None for null.

    :param where: what to call the columns in an error.
    :raises TableError: if they break the contract.
    """
    return _assemble([columns_of_lists(columns, where)])


def write_table(table: OutcomeTable, path: str | os.PathLike[str]) -> None:
    """Write in the format of the path's suffix; ``read_table`` gives an equal table back.

    ``messages`` are JSON text in Parquet and CSV. Columns that hold nothing are left out, and so is ``group`` where it
    is the request's id.

    :raises TableError: if the suffix is unknown.
    """
    try:
        write_columns(_columns_of(table, "table"), Path(path))
    except ValueError as exc:
        raise TableError(str(path), [str(exc)]) from exc


def group_folds(groups: Sequence[Hashable] | npt.NDArray[Any], n_folds: int, seed: int) -> IntArray:
    """Deal requests to folds of nearly equal size so that no group is divided.

    Groups are dealt largest first, each to the smallest fold (Graham 1969, longest processing time first), in an order
    that the seed shuffles among equals.

    :param groups: (n_requests,) group of each request.
    :return: (n_requests,) fold of each request, in 0..n_folds - 1.
    :raises TableError: if ``n_folds`` is below 2 or above the number of groups.
    """
    codes = _codes_in_order(groups.tolist() if isinstance(groups, np.ndarray) else groups)
    sizes = np.bincount(codes)
    if not 2 <= n_folds <= len(sizes):
        raise TableError("group_folds", [f"n_folds is {n_folds}; expected 2..{len(sizes)}, the number of groups"])
    shuffled = np.random.default_rng(seed).permutation(len(sizes))
    order = shuffled[np.argsort(-sizes[shuffled], kind="stable")]
    fold_of_group = np.empty(len(sizes), dtype=np.int64)
    folds = [(0, fold) for fold in range(n_folds)]
    for group in order.tolist():
        held, fold = folds[0]
        fold_of_group[group] = fold
        heapq.heapreplace(folds, (held + int(sizes[group]), fold))
    return fold_of_group[codes]


def _assemble(sets: Sequence[ColumnSet]) -> OutcomeTable:
    checked = check_rows(sets)
    own_group = zip(checked.labels["group"], checked.request_ids, strict=True)
    return OutcomeTable(
        request_ids=checked.request_ids,
        prompts=checked.prompts,
        task=checked.labels["task"],
        source=checked.labels["source"],
        group=[request_id if group is None else group for group, request_id in own_group],
        segment=checked.labels["segment"],
        models=checked.models,
        request=checked.request.astype(np.int32),
        model=checked.model.astype(np.int16),
        **checked.numbers,
        stored=checked.stored,
    )


def _codes_in_order(labels: Sequence[Hashable]) -> IntArray:
    code: dict[Hashable, int] = {}
    return np.asarray([code.setdefault(label, len(code)) for label in labels], dtype=np.int64)


def _columns_of(table: OutcomeTable, label: str) -> ColumnSet:
    columns: dict[str, list[str | None]] = {
        "request_id": list(table.request_ids),
        "prompt": [prompt if isinstance(prompt, str) and prompt else None for prompt in table.prompts],
        "messages": [None if isinstance(p, str) else json.dumps(p, ensure_ascii=False) for p in table.prompts],
        "group": [g if g != r else None for g, r in zip(table.group, table.request_ids, strict=True)],
        **{name: getattr(table, name) for name in ("task", "source", "segment")},
    }
    text = {name: _per_row(values, table.request) for name, values in columns.items()}
    text["model"] = _per_row(list(table.models), table.model)
    numbers = {name: getattr(table, name) for name in NUMBER_COLUMNS}
    out = ColumnSet(label, np.arange(1, table.n_rows + 1), text, numbers)
    if table.stored is not None:
        row = table.stored.row
        text["encoder"] = _per_row([table.stored.encoder if i >= 0 else None for i in row], table.request)
        for name in VECTOR_COLUMNS:
            values = getattr(table.stored, name)
            # row -1, a request with a prompt, is the last: null
            held = np.vstack([values, np.full((1, values.shape[1]), np.nan, np.float32)])
            out.vectors[name] = held[row[table.request]]
    return out


def _per_row(values: Sequence[str | None], index: npt.NDArray[Any]) -> pa.ChunkedArray:
    code: dict[str | None, int] = {None: -1}  # Arrow's own dictionary_encode would hold long texts three times
    codes = np.asarray([code.setdefault(value, len(code) - 1) for value in values], dtype=np.int32)[index]
    distinct = pa.array(list(code)[1:], type=pa.large_string())
    return pa.chunked_array([pa.DictionaryArray.from_arrays(pa.array(codes, mask=codes < 0), distinct)])
