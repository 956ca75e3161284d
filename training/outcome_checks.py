"""The contract of the outcome table, checked over all rows of all files at once.

``check_rows`` takes the typed columns of ``training.outcome_columns`` and either gives them back folded by request or
raises one ``TableError`` that names every bad row. Each check is one pass over arrays: seconds for a million rows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from router_ml.errors import RequestError, TableError
from router_ml.request import RouteRequest, read_trace
from training.outcome_columns import (
    NUMBER_COLUMNS,
    TEXT_COLUMNS,
    TEXT_TYPE,
    ColumnSet,
    FloatArray,
    IntArray,
    Problem,
    Prompt,
)
from training.outcome_stored import VECTOR_COLUMNS, Stored, Vectors, is_held

LABELS = ("task", "source", "group", "segment")
NOT_NEGATIVE = ("cost_usd", "input_tokens", "output_tokens", "latency_s", "turns", "tool_calls")
MAX_MODELS = np.iinfo(np.int16).max

BoolArray = npt.NDArray[np.bool_]


class CheckedRows(NamedTuple):
    """Rows that keep the contract, sorted by request, then model; requests in the order of their first row.

    ``request`` and ``model`` are (n_rows,) indices into ``request_ids`` and ``models``; ``numbers`` are (n_rows,)
    float64; ``prompts`` and ``labels`` have one entry per request. A prompt is "" where a representation is stored.
    """

    request_ids: list[str]
    prompts: list[Prompt]
    labels: dict[str, list[str | None]]
    models: tuple[str, ...]
    request: IntArray
    model: IntArray
    numbers: dict[str, FloatArray]
    stored: Stored | None


def check_rows(sets: Sequence[ColumnSet]) -> CheckedRows:
    """Check all rows against the contract, and fold them by request.

    :raises TableError: with every bad row, named by file, row number and column.
    """
    rows = _Rows(sets)
    content, contents = _contents(rows)
    whole = _stored_rows(rows)
    _check_cells(rows, content, whole)
    ids, names = rows.text["request_id"], rows.text["model"]
    known = np.flatnonzero((ids.codes >= 0) & (names.codes >= 0))  # all rows, unless the table is refused below
    request, id_codes = _by_appearance(ids.codes[known])
    model, name_codes = _by_name(names.codes[known], names.values)
    _check_repeats(rows, known, request * max(len(name_codes), 1) + model)
    prompt = _per_request(rows, known, request, content, "prompt")
    labels = {name: _per_request(rows, known, request, rows.text[name].codes, name) for name in LABELS}
    stored = _stored(rows, known, request, prompt, whole)
    rows.raise_if_bad()
    if len(name_codes) > MAX_MODELS:
        found = f"column model holds {len(name_codes)} distinct names; expected at most {MAX_MODELS}: is it the model?"
        raise TableError("outcome table", [found])
    order = np.lexsort((model, request))
    return CheckedRows(
        request_ids=[ids.values[code] for code in id_codes.tolist()],
        prompts=[contents[code] if code >= 0 else "" for code in prompt.tolist()],
        labels={name: _labels(codes, rows.text[name].values) for name, codes in labels.items()},
        models=tuple(names.values[code] for code in name_codes.tolist()),
        request=request[order],
        model=model[order],
        numbers={name: values[order] for name, values in rows.numbers.items()},
        stored=stored,
    )


class _Text(NamedTuple):
    """A text column of all files: (n_rows,) codes into distinct values, -1 where it is null or blank."""

    codes: IntArray
    values: list[str]


class _Vectors(NamedTuple):
    """A vector column of all files: ``rows`` (n_held,), rising, that are not null, and their values (n_held, width)."""

    rows: IntArray
    values: Vectors

    def of(self, rows: IntArray) -> Vectors:
        """Those of rows that are held."""
        return self.values[np.searchsorted(self.rows, rows)]


class _Rows:
    """The rows of all files, one after the other, and what is wrong with them."""

    def __init__(self, sets: Sequence[ColumnSet]) -> None:
        self._sets = sets
        self._counts = [len(columns.rows) for columns in sets]
        self.text = {name: self._text(name) for name in TEXT_COLUMNS}
        self.numbers = {name: self._numbers(name) for name in NUMBER_COLUMNS}
        self._file = np.repeat(np.arange(len(sets)), self._counts)
        self._row = np.concatenate([np.empty(0, np.int64), *(columns.rows for columns in sets)])
        self._found = [(file, problem) for file, columns in enumerate(sets) for problem in columns.problems]
        self.vectors = {name: self._vectors(name) for name in VECTOR_COLUMNS}
        self._reported: set[tuple[int, int, str | None]] = {(file, p.row, p.column) for file, p in self._found}

    def _text(self, name: str) -> _Text:
        chunks: list[Any] = []
        for columns, n in zip(self._sets, self._counts, strict=True):
            chunks += columns.text[name].chunks if name in columns.text else [pa.nulls(n, TEXT_TYPE)]
        column = pa.chunked_array(chunks, type=TEXT_TYPE).unify_dictionaries().combine_chunks()
        values: list[str] = column.dictionary.to_pylist()
        blank = np.asarray([not value.strip() for value in values] + [False])
        codes: IntArray = column.indices.fill_null(-1).to_numpy().astype(np.int64)
        codes[blank[codes]] = -1
        return _Text(codes, values)

    def _numbers(self, name: str) -> FloatArray:
        pairs = zip(self._sets, self._counts, strict=True)
        return np.concatenate([np.empty(0), *(columns.numbers.get(name, np.full(n, np.nan)) for columns, n in pairs)])

    def _vectors(self, name: str) -> _Vectors:
        rows, values, width = [np.empty(0, np.int64)], [], 0
        for file, (columns, start) in enumerate(zip(self._sets, np.cumsum([0, *self._counts]), strict=False)):
            vectors = columns.vectors.get(name)
            if vectors is None or not vectors.shape[1]:
                continue
            width = width or vectors.shape[1]
            if vectors.shape[1] != width:
                text = f"column {name} has {vectors.shape[1]} numbers in a row; expected {width}, as in the file before"
                self._found.append((file, Problem(0, name, text)))
                continue
            held = is_held(vectors)
            rows.append(start + np.flatnonzero(held))
            values.append(vectors[held])
        return _Vectors(np.concatenate(rows), np.concatenate(values) if values else np.empty((0, 0), np.float32))

    def place(self, row: int) -> str:
        return f"{self._sets[self._file[row]].label} row {self._row[row]}"

    def refuse(
        self, bad: BoolArray | IntArray, column: str, describe: Callable[[int], str], instead: str | None = None
    ) -> None:
        """Note each row of a mask or of an index array, unless the reader found the cell, or its column, bad already.

        :param instead: another column whose cell would have done in place of this one.
        """
        for row in (np.flatnonzero(bad) if bad.dtype == np.bool_ else bad).tolist():
            file, number = int(self._file[row]), int(self._row[row])
            cells = [(file, at, name) for at in (0, number) for name in (column, instead)]
            if self._reported.isdisjoint(cells):
                self._found.append((file, Problem(number, column, describe(row))))

    def raise_if_bad(self) -> None:
        """:raises TableError: with all problems, in the order of files and rows."""
        sentences = []
        for file, problem in sorted(self._found):
            cell = f" row {problem.row}, {problem.column or 'the row'}" if problem.row else ""
            sentences.append(f"{self._sets[file].label}{cell}: {problem.text}")
        where = self._sets[0].label if len(self._sets) == 1 else f"{len(self._sets)} files"
        if sentences or not len(self._row):
            raise TableError(where, sentences or ["there are no rows; expected at least one"])


def _contents(rows: _Rows) -> tuple[IntArray, list[Prompt]]:
    """What each row asks: (n_rows,) codes into distinct prompts and messages, -1 where there is neither."""
    prompt, messages = rows.text["prompt"], rows.text["messages"]
    contents: list[Prompt] = list(prompt.values)
    code_of_key: dict[str, int] = {}
    code_of_text = np.full(len(messages.values) + 1, -1)  # the last is for null
    wrong: dict[int, str] = {}
    canonical = json.JSONEncoder(sort_keys=True, ensure_ascii=False).encode
    for i, text in enumerate(messages.values):
        try:
            parsed = json.loads(text)
            read_trace(RouteRequest(parsed))
            key = canonical(parsed)  # the same messages may be spelled with other spaces or key order
            key.encode()  # half a surrogate pair, spelled as an escape, could be read but never written again
        except (RequestError, ValueError, RecursionError) as exc:
            wrong[i] = f"{exc}; expected OpenAI-style messages"
            continue
        if key not in code_of_key:
            code_of_key[key] = len(contents)
            contents.append(parsed)
        code_of_text[i] = code_of_key[key]
    if wrong:
        rows.refuse(np.isin(messages.codes, list(wrong)), "messages", lambda row: wrong[int(messages.codes[row])])
    return np.where(messages.codes >= 0, code_of_text[messages.codes], prompt.codes), contents


def _stored_rows(rows: _Rows) -> IntArray:
    """Rows that hold a whole representation, rising."""
    features, embedding = (rows.vectors[name].rows for name in VECTOR_COLUMNS)
    held: IntArray = np.intersect1d(features, embedding, assume_unique=True)
    return held[rows.text["encoder"].codes[held] >= 0]


def _stored(rows: _Rows, known: IntArray, request: IntArray, prompt: IntArray, whole: IntArray) -> Stored | None:
    """The representation of each request that has no prompt; rows that contradict each other are refused."""
    request_of = np.full(len(rows.text["request_id"].codes), -1)
    request_of[known] = request
    used = whole[request_of[whole] >= 0]
    used = used[prompt[request_of[used]] < 0]
    if not len(used):
        return None
    encoder = rows.text["encoder"]
    several = np.flatnonzero(encoder.codes[used] != encoder.codes[used[0]])
    expected = encoder.values[encoder.codes[used[0]]]
    rows.refuse(
        used[several], "encoder",
        lambda row: f"is {encoder.values[encoder.codes[row]][:12]}; expected one encoder, {expected[:12]}, in all rows",
    )  # fmt: skip
    which, first = np.unique(request_of[used], return_index=True)
    position = np.full(len(prompt), -1, dtype=np.int32)
    position[which] = np.arange(len(which), dtype=np.int32)
    chosen = [rows.vectors[name].of(used[first]) for name in VECTOR_COLUMNS]
    for name, values in zip(VECTOR_COLUMNS, chosen, strict=True):
        other = used[(rows.vectors[name].of(used) != values[position[request_of[used]]]).any(axis=1)]
        rows.refuse(other, name, lambda _: "is not that of the same request_id before; expected one per request_id")
    return Stored(chosen[0], chosen[1], expected, position)


def _check_cells(rows: _Rows, content: IntArray, whole: IntArray) -> None:
    for name in ("request_id", "model"):
        rows.refuse(rows.text[name].codes < 0, name, lambda _: "is missing or empty; expected text")
    nothing = (content < 0) & (rows.text["messages"].codes < 0)
    nothing[whole] = False
    missing = "is missing or empty, and there are no messages; expected one of them"
    rows.refuse(nothing, "prompt", lambda _: missing, instead="messages")
    score = rows.numbers["score"]
    rows.refuse(np.isnan(score), "score", lambda _: "is missing or NaN; expected a number from 0 to 1")
    _check_range(rows, "score", (score < 0) | (score > 1), "a number from 0 to 1")
    for name in NOT_NEGATIVE:
        values = rows.numbers[name]
        _check_range(rows, name, (values < 0) | np.isinf(values), "a finite number of at least 0, or null")
    _check_range(rows, "timestamp", np.isinf(rows.numbers["timestamp"]), "seconds since 1970 or an ISO 8601 time")
    propensity = rows.numbers["propensity"]
    _check_range(rows, "propensity", (propensity <= 0) | (propensity > 1), "a probability above 0 and up to 1, or null")


def _check_range(rows: _Rows, name: str, bad: BoolArray, expected: str) -> None:
    values = rows.numbers[name]
    rows.refuse(bad, name, lambda row: f"is {float(values[row])!r}; expected {expected}")


def _check_repeats(rows: _Rows, known: IntArray, cell: IntArray) -> None:
    _, first, inverse = np.unique(cell, return_index=True, return_inverse=True)
    repeated = np.flatnonzero(first[inverse] != np.arange(len(cell)))
    earlier = dict(zip(known[repeated].tolist(), known[first[inverse[repeated]]].tolist(), strict=True))

    def describe(row: int) -> str:
        return f"repeats the request_id and model of {rows.place(earlier[row])}; expected one row for both"

    rows.refuse(known[repeated], "model", describe)


def _by_appearance(codes: IntArray) -> tuple[IntArray, IntArray]:
    """Number the codes that occur from 0 in order of first appearance; also the code of each number."""
    occurring, first, inverse = np.unique(codes, return_index=True, return_inverse=True)
    order = np.argsort(first)
    return np.argsort(order)[inverse], occurring[order]


def _by_name(codes: IntArray, names: Sequence[str]) -> tuple[IntArray, IntArray]:
    """Number the codes that occur from 0 in order of their names; also the code of each number."""
    occurring, inverse = np.unique(codes, return_inverse=True)
    order = np.asarray(sorted(range(len(occurring)), key=lambda i: names[int(occurring[i])]), dtype=np.int64)
    return np.argsort(order)[inverse], occurring[order]


def _per_request(rows: _Rows, known: IntArray, request: IntArray, codes: IntArray, column: str) -> IntArray:
    """The one code that each request has in a column, -1 if all its rows are null; other rows are refused."""
    here = np.flatnonzero(codes[known] >= 0)
    which, first = np.unique(request[here], return_index=True)
    first_row = np.full(int(request.max(initial=-1)) + 1, -1)
    first_row[which] = known[here[first]]
    held = np.where(first_row >= 0, codes[first_row], -1)
    other = here[codes[known[here]] != held[request[here]]]
    earlier = dict(zip(known[other].tolist(), first_row[request[other]].tolist(), strict=True))

    def describe(row: int) -> str:
        return f"is not that of the same request_id in {rows.place(earlier[row])}; expected one {column} per request_id"

    rows.refuse(known[other], column, describe)
    return held


def _labels(codes: IntArray, values: Sequence[str]) -> list[str | None]:
    return [values[code] if code >= 0 else None for code in codes.tolist()]
