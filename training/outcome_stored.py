"""Requests whose text was not logged: what the classifier saw of them stands in an outcome table instead.

Three columns take the place of ``prompt``: ``features`` and ``embedding``, lists of numbers (in CSV as JSON text), and
``encoder``, the fingerprint of the encoder that made the embedding. They count only if a table has all three, and only
for requests without a prompt.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

VECTOR_COLUMNS = ("features", "embedding")
STORED_COLUMNS = (*VECTOR_COLUMNS, "encoder")

Vectors = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]


class Stored(NamedTuple):
    """Representations in place of prompts.

    :param features: (n_stored, F) float32. :param embedding: (n_stored, E) float32.
    :param encoder: fingerprint of the encoder that made every embedding.
    :param row: (n_requests,) row of each request in the two arrays, -1 where its prompt is known.
    """

    features: Vectors
    embedding: Vectors
    encoder: str
    row: npt.NDArray[np.int32]

    def select(self, requests: IntArray) -> Stored | None:
        """Those of some requests, in that order; None if all their prompts are known."""
        row = self.row[requests]
        return self._replace(row=row) if (row >= 0).any() else None

    def digested(self) -> bytes:
        """What identifies the content, as bytes."""
        held = self.row[self.row >= 0]
        parts = [self.features[held].astype("<f4"), self.embedding[held].astype("<f4"), (self.row >= 0).astype("u1")]
        return self.encoder.encode() + b"".join(part.tobytes() for part in parts)


def vector_of(value: Any) -> Vectors | None:
    """One cell: a list of numbers, or such a list as JSON text; None is null.

    :raises ValueError: if it is neither.
    """
    if isinstance(value, str):
        if not value.strip():
            return None
        value = json.loads(value)
    if value is None:
        return None
    try:
        vector = np.asarray(value, dtype=np.float32)
    except (TypeError, ValueError):
        raise ValueError("is not a list of numbers") from None
    if vector.ndim != 1 or not vector.size:
        raise ValueError("is not a list of numbers")
    if not np.isfinite(vector).all():
        raise ValueError("holds a number that is not finite as float32")
    return vector


def stack(cells: Sequence[Vectors | None], width: int = 0) -> tuple[Vectors, dict[int, str]]:
    """Cells of one column as (n, width) float32, NaN where null.

    :param width: length that they must have; 0: that of the first.
    :return: the matrix, and what is wrong with cells of another length, which become null.
    """
    width = width or next((len(cell) for cell in cells if cell is not None), 0)
    out = np.full((len(cells), width), np.nan, dtype=np.float32)
    wrong = {}
    for i, cell in enumerate(cells):
        if cell is not None and len(cell) == width:
            out[i] = cell
        elif cell is not None:
            wrong[i] = f"has {len(cell)} numbers; expected {width}, as in the rows before"
    return out, wrong


def is_held(vectors: Vectors) -> npt.NDArray[np.bool_]:
    """(n,) whether a row is not null."""
    return ~np.isnan(vectors[:, 0]) if vectors.shape[1] else np.zeros(len(vectors), dtype=bool)


def of_arrow_lists(column: pa.ChunkedArray) -> Vectors | None:
    """A list column as (n, width) float32, NaN where null; None if its lists differ in length or hold nulls."""
    lists = column.combine_chunks()
    lists = lists.cast(pa.large_list(pa.float32()))
    valid = lists.is_valid().to_numpy(zero_copy_only=False)
    if not valid.any():
        return np.empty((len(lists), 0), dtype=np.float32)
    flat = lists.drop_null().flatten()
    width, rest = divmod(len(flat), int(valid.sum()))
    lengths = lists.drop_null().value_lengths().to_numpy(zero_copy_only=False)
    if rest or not (lengths == width).all() or flat.null_count or not width:
        return None
    values = flat.to_numpy(zero_copy_only=False)
    if not np.isfinite(values).all():
        return None
    out = np.full((len(lists), width), np.nan, dtype=np.float32)
    out[valid] = values.reshape(-1, width)
    return out


def as_arrow_lists(vectors: Vectors) -> pa.ChunkedArray:
    """(n, width) float32 as a list column, null where NaN."""
    held = is_held(vectors)
    offsets = np.concatenate([[0], np.cumsum(np.where(held, vectors.shape[1], 0))]).astype(np.int64)
    flat = pa.array(np.ascontiguousarray(vectors[held]).ravel())
    lists = pa.LargeListArray.from_arrays(pa.array(offsets), flat, mask=pa.array(~held))
    return pa.chunked_array([lists])


def as_json_text(cell: Sequence[float] | None) -> str | None:
    """A cell as JSON text; nine digits give a float32 back exactly."""
    return None if cell is None else "[" + ",".join(f"{value:.9g}" for value in cell) + "]"
