"""The outcome table's columns, typed: what every reader hands to the checks of ``training.outcome_checks``.

A cell that cannot be read as its column's type becomes null and leaves a ``Problem``, so that one pass finds them all.
"""

from __future__ import annotations

import json
import math
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import NoneType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from training.outcome_stored import STORED_COLUMNS, VECTOR_COLUMNS, Vectors, stack, vector_of

TEXT_TYPE = pa.dictionary(pa.int32(), pa.large_string())  # 64-bit offsets: the texts of a table may pass 2 GB

REQUIRED = ("request_id", "model", "score")
TEXT_COLUMNS = ("request_id", "prompt", "messages", "model", "task", "source", "group", "segment", "encoder")
NUMBER_COLUMNS = (
    "score", "cost_usd", "input_tokens", "output_tokens", "latency_s", "turns", "tool_calls", "timestamp", "propensity",
)  # fmt: skip
KNOWN = TEXT_COLUMNS + NUMBER_COLUMNS + VECTOR_COLUMNS

NULL_NUMBERS = frozenset({"", "nan", "null", "none", "na", "n/a"})

Prompt = str | list[dict[str, Any]]
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


class Problem(NamedTuple):
    """Why one row cannot be used. ``row`` is the data row, counted from 1; 0 if it is the whole file."""

    row: int
    column: str
    text: str


@dataclass(slots=True)
class ColumnSet:
    """The contract's columns of one file, typed, not yet checked against each other.

    :param label: what to call the file in a message.
    :param rows: (n,) data row number, from 1, of each row held here.
    :param text: column -> (n,) chunked array of ``TEXT_TYPE``, ``messages`` as JSON text. Absent columns are missing.
    :param numbers: column -> (n,) float64, NaN for null. Absent columns are missing.
    :param vectors: column -> (n, width) float32, NaN for null. Absent columns are missing.
    """

    label: str
    rows: IntArray
    text: dict[str, pa.ChunkedArray] = field(default_factory=dict)
    numbers: dict[str, FloatArray] = field(default_factory=dict)
    vectors: dict[str, Vectors] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def columns_of_lists(lists: Mapping[str, Sequence[Any] | npt.NDArray[Any]], label: str) -> ColumnSet:
    """Type columns that are held in memory. Unknown columns are ignored, as in a file.

    :param lists: column -> one value per row; ``messages`` as lists of objects or as JSON text.
    """
    sizes = {name: len(values) for name, values in lists.items()}
    if len(set(sizes.values())) > 1:
        return ColumnSet(label, np.empty(0, np.int64), problems=[Problem(0, "", f"columns differ in length: {sizes}")])
    n_rows = next(iter(sizes.values()), 0)
    out = ColumnSet(label, np.arange(1, n_rows + 1))
    if lacks_columns(out, list(lists)):
        return out
    if not n_rows:
        out.problems.append(Problem(0, "", "there are no rows"))
    known: dict[str, Any] = {
        name: values.tolist() if isinstance(values, np.ndarray) and name not in VECTOR_COLUMNS else values
        for name, values in lists.items()
    }
    append_values(out, {name: known[name] for name in KNOWN if name in known}, out.rows)
    keep_stored_if_whole(out, lists)
    return out


def keep_stored_if_whole(out: ColumnSet, found: Iterable[str]) -> None:
    """Leave out columns that look like stored representations where a table does not have all of them."""
    if set(found).issuperset(STORED_COLUMNS):
        return
    out.vectors.clear()
    out.text.pop("encoder", None)
    out.problems[:] = [problem for problem in out.problems if problem.column not in STORED_COLUMNS]


def lacks_columns(out: ColumnSet, found: Iterable[str]) -> bool:
    """Report required columns that are missing or named twice; then the file's rows cannot be judged and are let go."""
    names = list(found)
    missing = [name for name in REQUIRED if name not in names]
    if "prompt" not in names and "messages" not in names and not set(names).issuperset(STORED_COLUMNS):
        missing.append("prompt (or messages)")
    before = len(out.problems)
    for name in missing:
        out.problems.append(Problem(0, name, f"column {name} is missing; found {brief(sorted(map(str, names)), 300)}"))
    for name in sorted({name for name in names if name in KNOWN and names.count(name) > 1}):
        out.problems.append(Problem(0, name, f"column {name} appears {names.count(name)} times"))
    if len(out.problems) == before:
        return False
    out.rows, out.text, out.numbers, out.vectors = np.empty(0, np.int64), {}, {}, {}
    return True


def append_values(out: ColumnSet, values: Mapping[str, Sequence[Any]], rows: IntArray) -> None:
    for name, column in values.items():
        if name in NUMBER_COLUMNS:
            earlier = out.numbers.get(name, np.empty(0))
            out.numbers[name] = np.concatenate([earlier, _number_array(out, name, column, rows)])
        elif name in VECTOR_COLUMNS:
            _append_vectors(out, name, _convert_each(out, name, column, rows, _vector, None), rows)
        else:
            chunks = out.text[name].chunks if name in out.text else []
            encoded = _text_array(out, name, column, rows).dictionary_encode()
            out.text[name] = pa.chunked_array([*chunks, encoded], type=TEXT_TYPE)


def _append_vectors(out: ColumnSet, name: str, cells: Sequence[Vectors | None], rows: IntArray) -> None:
    earlier = out.vectors.get(name, np.empty((0, 0), dtype=np.float32))
    block, wrong = stack(cells, earlier.shape[1])
    out.problems += [Problem(int(rows[i]), name, text) for i, text in wrong.items()]
    if earlier.shape[1] != block.shape[1]:  # all null so far
        earlier = np.full((len(earlier), block.shape[1]), np.nan, dtype=np.float32)
    out.vectors[name] = np.concatenate([earlier, block])


def _vector(value: Any, name: str) -> Vectors | None:
    return vector_of(value)


def _number_array(out: ColumnSet, name: str, values: Sequence[Any], rows: IntArray) -> FloatArray:
    if set(map(type, values)) <= {int, float, NoneType}:
        try:
            return np.asarray([math.nan if value is None else value for value in values], dtype=np.float64)
        except OverflowError:  # an integer beyond float64: the slow way says in which row
            pass
    return np.asarray(_convert_each(out, name, values, rows, _number, math.nan), dtype=np.float64)


def _text_array(out: ColumnSet, name: str, values: Sequence[Any], rows: IntArray) -> pa.Array:
    if set(map(type, values)) <= {str, NoneType}:
        try:
            return pa.array(values, type=pa.large_string())
        except UnicodeEncodeError:  # half a surrogate pair: the slow way says in which row
            pass
    convert = _messages_text if name == "messages" else _text
    return pa.array(_convert_each(out, name, values, rows, convert, None), type=pa.large_string())


def _convert_each(
    out: ColumnSet,
    name: str,
    values: Sequence[Any],
    rows: IntArray,
    convert: Callable[[Any, str], Any],
    null: float | None,
) -> list[Any]:
    converted = []
    for row, value in zip(rows.tolist(), values, strict=True):
        try:
            converted.append(null if value is None else convert(value, name))
        except (ValueError, OverflowError, RecursionError) as exc:
            out.problems.append(Problem(row, name, str(exc)))
            converted.append(null)
    return converted


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"is {brief(value)}; expected text")
    if not value.isascii():
        _refuse_surrogates(value)
    return value


def _messages_text(value: Any, name: str) -> str:
    if isinstance(value, str):
        return _text(value, name)
    try:
        text = json.dumps(value, ensure_ascii=False)
    except TypeError as exc:
        raise ValueError(f"cannot be written as JSON: {exc}") from exc
    _refuse_surrogates(text)
    return text


def _refuse_surrogates(value: str) -> None:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as exc:
        raise ValueError(f"holds half of a surrogate pair at character {exc.start}; expected Unicode text") from exc


def _number(value: Any, name: str) -> float:
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError as exc:
            raise ValueError("is too large a number") from exc
    if name == "timestamp" and isinstance(value, datetime):
        return _epoch(value)
    if name == "timestamp" and isinstance(value, str):
        return number_of_text(value, name)
    raise ValueError(f"is {brief(value)}; expected a number")


def number_of_text(text: str, name: str) -> float:
    stripped = text.strip()
    if stripped.lower() in NULL_NUMBERS:
        return math.nan
    try:
        if "_" not in stripped:  # Python reads 1_000 as a number; a person who wrote it in a CSV file meant text
            return float(stripped)
    except ValueError:
        pass
    if name != "timestamp":
        raise ValueError(f"is {brief(text)}; expected a number")
    try:
        return _epoch(datetime.fromisoformat(stripped))
    except (ValueError, OverflowError) as exc:
        raise ValueError(f"is {brief(text)}; expected seconds since 1970 or an ISO 8601 time") from exc


def _epoch(moment: datetime) -> float:
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def brief(value: object, limit: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
