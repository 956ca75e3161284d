"""Outcome tables as files: Parquet, CSV and JSON lines, in and out.

Each reader turns one file into a ``ColumnSet``: the contract's columns, every cell typed, and a ``Problem`` for each
cell that could not be. Whether the cells make sense together is for ``training.outcome_table`` to judge.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from training.outcome_columns import (
    KNOWN,
    NUMBER_COLUMNS,
    REQUIRED,
    TEXT_COLUMNS,
    TEXT_TYPE,
    ColumnSet,
    FloatArray,
    IntArray,
    Problem,
    append_values,
    brief,
    keep_stored_if_whole,
    lacks_columns,
    number_of_text,
)
from training.outcome_stored import (
    VECTOR_COLUMNS,
    Vectors,
    as_arrow_lists,
    as_json_text,
    of_arrow_lists,
    stack,
    vector_of,
)

CHUNK_ROWS = 50_000
CHUNK_VECTORS = 5_000  # rows at once where vectors are spelled out
CSV_BLOCK_BYTES = 1 << 26  # a CSV row must fit in one block, and a prompt of a million tokens takes 4 MB


def read_columns(path: Path) -> ColumnSet:
    """Read one file by its suffix. Whatever is wrong with it ends up in ``problems``; nothing is raised."""
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        return _unusable(path, f"unknown suffix {path.suffix!r}; expected one of {sorted(READERS)}")
    try:
        if path.stat().st_size == 0:
            return _unusable(path, "the file is empty")
        columns = reader(path)
    except (OSError, pa.ArrowException, UnicodeError) as exc:
        return _unusable(path, f"cannot be read as {path.suffix.lower()}: {_first_line(exc)}")
    if not len(columns.rows) and not columns.problems:
        return _unusable(path, "the file has no rows")
    return columns


def write_columns(columns: ColumnSet, path: Path) -> None:
    """Write to ``path`` in the format of its suffix. The file appears whole or not at all.

    :raises ValueError: if the suffix is unknown.
    :raises OSError: if it cannot be written.
    """
    writer = WRITERS.get(path.suffix.lower())
    if writer is None:
        raise ValueError(f"unknown suffix {path.suffix!r}; expected one of {sorted(WRITERS)}")
    held: dict[str, pa.ChunkedArray] = {}
    for name in KNOWN:
        if name in columns.text:
            held[name] = columns.text[name]
        elif name in columns.numbers:
            held[name] = pa.chunked_array([pa.array(columns.numbers[name], from_pandas=True)])  # NaN is written as null
        elif name in columns.vectors:
            held[name] = as_arrow_lists(columns.vectors[name])
    kept = {name: column for name, column in held.items() if name in REQUIRED or column.null_count < len(column)}
    partial = path.with_name(f".{path.name}.partial")
    try:
        writer(pa.table(kept), partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


# Parquet


def _read_parquet(path: Path) -> ColumnSet:
    with pq.ParquetFile(path) as file:
        schema = file.schema_arrow
        out = ColumnSet(str(path), np.arange(1, file.metadata.num_rows + 1))
    if lacks_columns(out, schema.names):
        return out
    present = [name for name in KNOWN if name in schema.names]
    as_dictionary = [name for name in present if name in TEXT_COLUMNS and _is_text(schema.field(name).type)]
    with pq.ParquetFile(path, read_dictionary=as_dictionary) as file:
        for name in present:
            column = file.read(columns=[name]).column(name)  # one at a time: bounds what is held twice
            if name in TEXT_COLUMNS:
                _add_arrow_text(out, name, column)
            elif name in VECTOR_COLUMNS:
                _add_arrow_vectors(out, name, column)
            else:
                _add_arrow_numbers(out, name, column)
    keep_stored_if_whole(out, schema.names)
    return out


def _add_arrow_text(out: ColumnSet, name: str, column: pa.ChunkedArray) -> None:
    if pa.types.is_null(column.type):
        return
    if name == "messages" and pa.types.is_nested(column.type):
        append_values(out, {name: _without_nulls(column.to_pylist())}, out.rows)
    elif _is_text(column.type):
        if not pa.types.is_dictionary(column.type):
            column = column.dictionary_encode()
        out.text[name] = pa.chunked_array([_wide(chunk) for chunk in column.chunks], type=TEXT_TYPE)
    else:
        out.problems.append(Problem(0, name, f"column {name} is {column.type}; expected text"))


def _add_arrow_numbers(out: ColumnSet, name: str, column: pa.ChunkedArray) -> None:
    kind = column.type
    if pa.types.is_null(kind):
        return
    is_clock = pa.types.is_timestamp(kind) or pa.types.is_date(kind)
    if name == "timestamp" and (is_clock or _is_text(kind)):
        if is_clock:
            micros = column.cast(pa.timestamp("us", tz=getattr(kind, "tz", None)), safe=False).cast(pa.int64())
            out.numbers[name] = _float_values(micros) / 1e6
        else:
            append_values(out, {name: column.to_pylist()}, out.rows)
    elif pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        out.numbers[name] = _float_values(column)
    else:
        out.problems.append(Problem(0, name, f"column {name} is {kind}; expected numbers"))


def _add_arrow_vectors(out: ColumnSet, name: str, column: pa.ChunkedArray) -> None:
    lists = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
    vectors: Vectors | None = None
    if lists or pa.types.is_fixed_size_list(column.type):
        vectors = of_arrow_lists(column)
    if vectors is not None:
        out.vectors[name] = vectors
    else:  # JSON text, or a list that is wrong: the slow way says in which row
        append_values(out, {name: column.to_pylist()}, out.rows)


def _float_values(column: pa.ChunkedArray) -> FloatArray:
    values: FloatArray = column.cast(pa.float64(), safe=False).fill_null(math.nan).to_numpy()
    return values


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _wide(chunk: pa.DictionaryArray) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(chunk.indices.cast(pa.int32()), chunk.dictionary.cast(pa.large_string()))


def _without_nulls(value: Any) -> Any:
    """Drop the keys that Arrow adds, as null, to messages that lack a key which other messages have."""
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [_without_nulls(inner) for inner in value]
    return value


# CSV


def _read_csv(path: Path) -> ColumnSet:
    broken: list[Problem] = []

    def keep_number(row: Any) -> str:
        text = f"has {row.actual_columns} cells; the header has {row.expected_columns}"
        broken.append(Problem(row.number - 1, "", text))  # Arrow counts the header as row 1
        return "skip"

    # Bytes, not text: one row that is not UTF-8 must not hide which row it is. One thread: else rows have no number.
    cell = pa.dictionary(pa.int32(), pa.binary())
    table = pa_csv.read_csv(
        path,
        read_options=pa_csv.ReadOptions(use_threads=False, block_size=CSV_BLOCK_BYTES),
        parse_options=pa_csv.ParseOptions(newlines_in_values=True, invalid_row_handler=keep_number),
        convert_options=pa_csv.ConvertOptions(
            check_utf8=False, column_types=dict.fromkeys(KNOWN, cell), strings_can_be_null=True, null_values=[""]
        ),
    )
    all_rows = np.arange(1, table.num_rows + len(broken) + 1)
    out = ColumnSet(str(path), np.setdiff1d(all_rows, [problem.row for problem in broken]), problems=broken)
    if lacks_columns(out, table.column_names):
        return out
    for name in KNOWN:
        if name in table.column_names:
            _add_csv_column(out, name, table.column(name).unify_dictionaries().combine_chunks())
    keep_stored_if_whole(out, table.column_names)
    return out


def _add_csv_column(out: ColumnSet, name: str, cells: pa.DictionaryArray) -> None:
    codes = cells.indices.fill_null(-1).to_numpy()
    values: list[Any] = []
    wrong: dict[int, str] = {}
    null = "" if name in TEXT_COLUMNS else None if name in VECTOR_COLUMNS else math.nan
    for code, raw in enumerate(cells.dictionary.to_pylist()):
        value: Any = null
        try:
            text = raw.decode("utf-8")
            value = text if null == "" else vector_of(text) if null is None else number_of_text(text, name)
        except UnicodeDecodeError:
            wrong[code] = "is not UTF-8 text"
        except ValueError as exc:
            wrong[code] = str(exc)
        values.append(value)
    if name in VECTOR_COLUMNS:
        vectors, other = stack([*values, None])  # code -1, null, is the last
        out.vectors[name] = vectors[codes]
        wrong |= other
    if wrong:
        for position in np.flatnonzero(np.isin(codes, list(wrong))).tolist():
            out.problems.append(Problem(int(out.rows[position]), name, wrong[int(codes[position])]))
    if name in TEXT_COLUMNS:
        indices = pa.array(codes, mask=codes < 0)
        texts = pa.array(values, type=pa.large_string())
        out.text[name] = pa.chunked_array([pa.DictionaryArray.from_arrays(indices, texts)])
    elif name in NUMBER_COLUMNS:
        out.numbers[name] = np.asarray([*values, math.nan], dtype=np.float64)[codes]  # code -1, null, is the last


# JSON lines


def _read_json_lines(path: Path) -> ColumnSet:
    out = ColumnSet(str(path), np.empty(0, np.int64))
    chunks: list[IntArray] = []
    seen: set[str] = set()
    with path.open("rb") as lines:
        numbered = _json_rows(lines, out.problems)
        while chunk := list(islice(numbered, CHUNK_ROWS)):
            rows = np.asarray([number for number, _ in chunk], dtype=np.int64)
            for _, values in chunk:
                seen |= values.keys()
            append_values(out, {name: [values.get(name) for _, values in chunk] for name in KNOWN}, rows)
            chunks.append(rows)
    out.rows = np.concatenate([*chunks, out.rows])
    if len(out.rows):
        keep_stored_if_whole(out, seen)
        lacks_columns(out, seen)
    return out


def _json_rows(lines: Iterator[bytes], problems: list[Problem]) -> Iterator[tuple[int, dict[str, Any]]]:
    number = 0
    for line_number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        number += 1
        try:
            value = json.loads(line.decode("utf-8-sig" if line_number == 1 else "utf-8"))
        except (ValueError, RecursionError) as exc:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
            problems.append(Problem(number, "", f"line {line_number} is not JSON: {_first_line(exc)}"))
            continue
        if isinstance(value, dict):
            yield number, value
        else:
            problems.append(Problem(number, "", f"line {line_number} is {brief(value)}; expected a JSON object"))


# Writing


def _write_parquet(table: pa.Table, path: Path) -> None:
    schema = _plain_schema(table)
    # Without the Arrow schema other readers see plain strings, not dictionaries.
    with pq.ParquetWriter(path, schema, compression="zstd", store_schema=False) as writer:
        for batch in _slices(table):
            writer.write_table(batch.cast(schema))


def _write_csv(table: pa.Table, path: Path) -> None:
    schema = _plain_schema(_with_vectors_as_text(table.slice(0, 0)))
    with pa_csv.CSVWriter(path, schema) as writer:
        for batch in _slices(table):
            writer.write_table(_with_vectors_as_text(batch).cast(schema))


def _slices(table: pa.Table) -> Iterator[pa.Table]:
    """Pieces small enough that texts and vectors may be spelled out once per row."""
    size = CHUNK_ROWS if set(VECTOR_COLUMNS).isdisjoint(table.column_names) else CHUNK_VECTORS
    for start in range(0, table.num_rows, size):
        yield table.slice(start, size)


def _with_vectors_as_text(table: pa.Table) -> pa.Table:
    for i, name in enumerate(table.column_names):
        if name in VECTOR_COLUMNS:
            texts = [as_json_text(cell) for cell in table.column(i).to_pylist()]
            table = table.set_column(i, name, pa.array(texts, type=pa.large_string()))
    return table


def _plain_schema(table: pa.Table) -> pa.Schema:
    return pa.schema([(field.name, _plain(field.type)) for field in table.schema])


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _write_json_lines(table: pa.Table, path: Path) -> None:
    names = table.column_names
    encode = json.JSONEncoder(ensure_ascii=False).encode
    with path.open("w", encoding="utf-8", newline="\n") as out:
        for batch in _slices(table):
            columns = _with_vectors_as_text(batch).columns
            for values in zip(*(column.to_pylist() for column in columns), strict=True):
                held = {name: value for name, value in zip(names, values, strict=True) if value is not None}
                for name in held.keys() & {"messages", *VECTOR_COLUMNS}:
                    held[name] = json.loads(held[name])
                out.write(encode(held) + "\n")


READERS: Mapping[str, Callable[[Path], ColumnSet]] = {
    ".parquet": _read_parquet, ".pq": _read_parquet, ".csv": _read_csv,
    ".jsonl": _read_json_lines, ".ndjson": _read_json_lines, ".json": _read_json_lines,
}  # fmt: skip
WRITERS: Mapping[str, Callable[[pa.Table, Path], None]] = {
    ".parquet": _write_parquet, ".pq": _write_parquet, ".csv": _write_csv,
    ".jsonl": _write_json_lines, ".ndjson": _write_json_lines, ".json": _write_json_lines,
}  # fmt: skip


def _unusable(path: Path, text: str) -> ColumnSet:
    return ColumnSet(str(path), np.empty(0, np.int64), problems=[Problem(0, "", text)])


def _first_line(exc: BaseException) -> str:
    lines = str(exc).strip().splitlines()
    return lines[0] if lines else type(exc).__name__
