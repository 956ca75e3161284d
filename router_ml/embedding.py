"""Text -> vector, behind a one-method seam.

The default is a *static* embedding: one vector per word piece, averaged. It routes as well as the transformer it was
distilled from (``training/distil.py``) at about a hundredth of the latency, and needs no torch. Any
sentence-transformers model is the alternative (extra ``embed``).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from router_ml.errors import ArtifactError, EncoderMismatchError, MissingExtraError

Vectors = NDArray[np.float32]

# Characters kept of each end of a long text. Prompts often open with a preamble that many share and close with the
# question itself (DESIGN fact 3), so neither end may be lost; the middle is dropped before tokenizing, which is
# most of the cost.
HEAD_CHARS = 800
TAIL_CHARS = 800
# Tokens averaged on their own at each end, beside the average over all of them.
HEAD_TOKENS = 32
TAIL_TOKENS = 48

TOKENIZER_FILE = "tokenizer.json"
TABLE_FILE = "embedding.npz"


class Encoder(Protocol):
    """Turns texts into vectors; two encoders with one fingerprint give the same vectors."""

    @property
    def dim(self) -> int:
        """Length of a vector."""
        ...

    @property
    def fingerprint(self) -> str:
        """Identity of the encoder, pinned in every artifact trained with it."""
        ...

    def encode(self, texts: Sequence[str]) -> Vectors:
        """:return: (n_texts, dim) float32; an empty text gives zeros."""
        ...

    def describe(self) -> dict[str, Any]:
        """What a manifest must hold to find this encoder again: at least ``kind``, ``dim`` and ``fingerprint``."""
        ...


def head_and_tail(text: str) -> str:
    """The text, or both ends of it if it is long."""
    if len(text) <= HEAD_CHARS + TAIL_CHARS:
        return text
    return f"{text[:HEAD_CHARS]} {text[-TAIL_CHARS:]}"


class StaticEncoder:
    """Mean of word-piece vectors: over the whole text, its tail and its head, each of unit length, side by side.

    :param tokenizer_json: a ``tokenizers`` file.
    :param codes: (n_vocabulary, width) int8. :param scales: (n_vocabulary,) float32; row i is ``codes[i] * scales[i]``.
    :raises ArtifactError: if vocabulary and table do not belong together.
    """

    def __init__(self, tokenizer_json: bytes, codes: NDArray[np.int8], scales: NDArray[np.float32]) -> None:
        from tokenizers import Tokenizer

        try:
            self._tokenizer = Tokenizer.from_str(tokenizer_json.decode("utf-8"))
        except Exception as exc:  # tokenizers raises bare Exception
            raise ArtifactError(f"the tokenizer file cannot be read: {exc}") from exc
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        size = self._tokenizer.get_vocab_size()
        if codes.ndim != 2 or len(codes) != size or len(scales) != size:
            raise ArtifactError(
                f"the tokenizer knows {size} pieces, the table has shape {codes.shape}: not one encoder"
            )
        self._json, self._codes, self._scales = tokenizer_json, codes, scales
        unknown = self._tokenizer.token_to_id("[UNK]")
        if unknown is not None and scales[unknown] != 0.0:
            # an unknown piece says nothing, and its vector would pull every foreign text to one place
            self._scales = scales.copy()
            self._scales[unknown] = 0.0

    @classmethod
    def load(cls, folder: Path) -> StaticEncoder:
        """Read ``tokenizer.json`` and ``embedding.npz`` from a folder."""
        try:
            # np.load leaves a file that it opened itself open if it is not what it should be
            with (folder / TABLE_FILE).open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
                return cls((folder / TOKENIZER_FILE).read_bytes(), arrays["codes"], arrays["scales"])
        except ArtifactError:
            raise
        except Exception as exc:  # numpy, zipfile and zlib raise a dozen kinds on a file that is not what its name says
            raise ArtifactError(f"{folder}: no static encoder there ({exc})") from exc

    def save(self, folder: Path) -> None:
        """Write the two files that ``load`` reads."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / TOKENIZER_FILE).write_bytes(self._json)
        np.savez(folder / TABLE_FILE, codes=self._codes, scales=self._scales)

    @property
    def dim(self) -> int:
        return 3 * int(self._codes.shape[1])

    @cached_property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(b"static-1")
        for part in (self._json, self._codes.tobytes(), self._scales.tobytes()):
            digest.update(hashlib.sha256(part).digest())
        digest.update(json.dumps([HEAD_CHARS, TAIL_CHARS, HEAD_TOKENS, TAIL_TOKENS]).encode())
        return digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        return {"kind": "static", "dim": self.dim, "fingerprint": self.fingerprint}

    def encode(self, texts: Sequence[str]) -> Vectors:
        encodings = self._tokenizer.encode_batch_fast([_clean(t) for t in texts], add_special_tokens=False)
        out = np.zeros((len(texts), self.dim), dtype=np.float32)
        for row, encoding in zip(out, encodings, strict=True):
            self._pool(encoding.ids, row)
        return out

    def _pool(self, ids: list[int], out: Vectors) -> None:
        if not ids:
            return
        index = np.array(ids, dtype=np.intp)
        weights = self._scales.take(index)
        pieces = self._codes.take(index, axis=0).astype(np.float32)
        width = pieces.shape[1]
        # scale times code, summed: a product of a row and a matrix, so no scaled copy of the pieces is made
        whole = _unit(weights.dot(pieces))
        n = len(ids)
        if n <= HEAD_TOKENS:
            out.reshape(3, width)[:] = whole
            return
        out[:width] = whole
        out[width : 2 * width] = whole if n <= TAIL_TOKENS else _unit(weights[-TAIL_TOKENS:] @ pieces[-TAIL_TOKENS:])
        out[2 * width :] = _unit(weights[:HEAD_TOKENS] @ pieces[:HEAD_TOKENS])


class SentenceTransformerEncoder:
    """Any sentence-transformers model, by name or local path. Loaded at first use.

    :param name_or_path: as ``SentenceTransformer`` takes it.
    :param expected_fingerprint: refuse a model that does not give the vectors the router was trained on.
    """

    def __init__(self, name_or_path: str, expected_fingerprint: str | None = None) -> None:
        self.name_or_path = name_or_path
        self._expected = expected_fingerprint

    @cached_property
    def _model(self) -> Any:
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as exc:
            raise MissingExtraError("sentence-transformers", "embed") from exc
        return SentenceTransformer(self.name_or_path, device="cpu")

    @cached_property
    def dim(self) -> int:
        return int(self._encode_raw(["dimension"]).shape[1])

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the vectors of fixed probes, rounded: files may differ in form and still be one model."""
        probe = self._encode_raw(["The quick brown fox.", "def f(x): return x ** 2", "¿Qué hora es?"])
        return hashlib.sha256(np.round(probe, 2).astype(np.float32).tobytes()).hexdigest()

    def describe(self) -> dict[str, Any]:
        return {
            "kind": "sentence-transformers", "name": self.name_or_path,
            "dim": self.dim, "fingerprint": self.fingerprint,
        }  # fmt: skip

    def encode(self, texts: Sequence[str]) -> Vectors:
        if self._expected is not None and self.fingerprint != self._expected:
            raise EncoderMismatchError(
                f"{self.name_or_path} gives other vectors (fingerprint {self.fingerprint[:12]}) than the router was "
                f"trained with ({self._expected[:12]}); install the same model or train again"
            )
        return self._encode_raw([_clean(t) for t in texts])

    def _encode_raw(self, texts: Sequence[str]) -> Vectors:
        return np.asarray(self._model.encode(list(texts), normalize_embeddings=True), dtype=np.float32)


def _unit(vector: Vectors) -> Vectors:
    norm = float(vector.dot(vector)) ** 0.5
    return vector / norm if norm > 0.0 else vector


def _clean(text: str) -> str:
    text = head_and_tail(text)
    if text.isascii():
        return text
    # the tokenizer takes UTF-8, and a lone surrogate has none
    return text.encode("utf-8", "replace").decode("utf-8")
