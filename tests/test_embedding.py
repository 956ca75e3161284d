from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from router_ml import embedding
from router_ml.embedding import HEAD_CHARS, TAIL_CHARS, StaticEncoder, head_and_tail
from router_ml.errors import ArtifactError, EncoderMismatchError, MissingExtraError
from training.distil import quantise
from training.fitting import default_encoder


@pytest.fixture(scope="module")
def encoder() -> StaticEncoder:
    made = default_encoder()
    assert isinstance(made, StaticEncoder)
    return made


def test_each_third_has_unit_length(encoder: StaticEncoder) -> None:
    vectors = encoder.encode(["Why is the sky blue?", "word " * 400])
    assert vectors.shape == (2, encoder.dim) and vectors.dtype == np.float32
    thirds = vectors.reshape(2, 3, -1)
    np.testing.assert_allclose(np.linalg.norm(thirds, axis=2), 1.0, atol=1e-5)


def test_empty_text_is_zero(encoder: StaticEncoder) -> None:
    assert not encoder.encode(["", "   "]).any()


def test_a_batch_equals_its_rows(encoder: StaticEncoder) -> None:
    texts = ["a", "Sort a list in Rust.", "longer " * 90, "", "naïve café 東京"]
    np.testing.assert_array_equal(encoder.encode(texts), np.vstack([encoder.encode([t]) for t in texts]))


def test_both_ends_of_a_long_text_count_and_the_middle_does_not(encoder: StaticEncoder) -> None:
    head, tail = "alpha " * (HEAD_CHARS // 6 + 1), "omega " * (TAIL_CHARS // 6 + 1)
    plain, other = head + "middle " * 5_000 + tail, head + "banana " * 5_000 + tail
    np.testing.assert_array_equal(encoder.encode([plain]), encoder.encode([other]))
    changed_tail = head + "middle " * 5_000 + "delta " * (TAIL_CHARS // 6 + 1)
    assert np.abs(encoder.encode([plain]) - encoder.encode([changed_tail])).max() > 0.05
    assert len(head_and_tail("x" * 10**6)) == HEAD_CHARS + TAIL_CHARS + 1


def test_related_texts_are_nearer_than_unrelated_ones(encoder: StaticEncoder) -> None:
    a, b, c = encoder.encode(
        ["How do I bake bread?", "a recipe for baking a loaf of bread", "segmentation fault in C code"]
    )
    assert a @ b > a @ c + 0.3


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb", "\x00\x01", "🤖" * 500, "x" * 1_000_000])
def test_odd_text_gives_finite_vectors(encoder: StaticEncoder, text: str) -> None:
    assert np.isfinite(encoder.encode([text])).all()


def test_save_and_load_give_equal_vectors_and_fingerprint(encoder: StaticEncoder, tmp_path: Path) -> None:
    encoder.save(tmp_path)
    again = StaticEncoder.load(tmp_path)
    assert again.fingerprint == encoder.fingerprint
    np.testing.assert_array_equal(again.encode(["the same"]), encoder.encode(["the same"]))


def test_another_table_is_another_fingerprint(encoder: StaticEncoder, tmp_path: Path) -> None:
    encoder.save(tmp_path)
    with np.load(tmp_path / embedding.TABLE_FILE) as arrays:
        codes, scales = arrays["codes"].copy(), arrays["scales"]
    codes[100, 0] ^= 1
    changed = StaticEncoder((tmp_path / embedding.TOKENIZER_FILE).read_bytes(), codes, scales)
    assert changed.fingerprint != encoder.fingerprint


def test_a_table_of_another_vocabulary_is_refused(encoder: StaticEncoder, tmp_path: Path) -> None:
    encoder.save(tmp_path)
    with np.load(tmp_path / embedding.TABLE_FILE) as arrays:
        codes, scales = arrays["codes"][:-1], arrays["scales"][:-1]
    with pytest.raises(ArtifactError, match="not one encoder"):
        StaticEncoder((tmp_path / embedding.TOKENIZER_FILE).read_bytes(), codes, scales)


@pytest.mark.parametrize("name", [embedding.TOKENIZER_FILE, embedding.TABLE_FILE])
def test_a_missing_or_broken_file_is_an_artifact_error(encoder: StaticEncoder, tmp_path: Path, name: str) -> None:
    encoder.save(tmp_path)
    (tmp_path / name).write_bytes(b"{broken")
    with pytest.raises(ArtifactError):
        StaticEncoder.load(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(ArtifactError):
        StaticEncoder.load(tmp_path)


def test_quantised_rows_point_where_the_originals_do() -> None:
    weights = np.random.default_rng(0).normal(size=(50, 64)) * np.logspace(-3, 1, 50)[:, None]
    codes, scales = quantise(weights)
    restored = codes * scales[:, None]
    cosine = (weights * restored).sum(1) / np.linalg.norm(weights, axis=1) / np.linalg.norm(restored, axis=1)
    assert codes.dtype == np.int8 and cosine.min() > 0.999


def test_without_sentence_transformers_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sentence_transformers", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'router-ml\[embed\]'"):
        embedding.SentenceTransformerEncoder("any").encode(["x"])


class _Fake:
    """Stands where a SentenceTransformer would."""

    def __init__(self, shift: float) -> None:
        self.shift = shift

    def encode(self, texts: list[str], normalize_embeddings: bool) -> np.ndarray:
        return np.array([[len(t) + self.shift, 1.0] for t in texts])


def test_a_model_with_other_vectors_is_refused() -> None:
    first, second = (embedding.SentenceTransformerEncoder("m") for _ in range(2))
    first.__dict__["_model"], second.__dict__["_model"] = _Fake(0.0), _Fake(0.5)
    pinned = embedding.SentenceTransformerEncoder("m", expected_fingerprint=first.fingerprint)
    pinned.__dict__["_model"] = _Fake(0.0)
    assert pinned.encode(["abc"]).shape == (1, 2)
    pinned = embedding.SentenceTransformerEncoder("m", expected_fingerprint=first.fingerprint)
    pinned.__dict__["_model"] = _Fake(0.5)
    with pytest.raises(EncoderMismatchError, match="other vectors"):
        pinned.encode(["abc"])


@pytest.mark.slow
def test_equals_sentence_transformers_static_embedding(encoder: StaticEncoder, tmp_path: Path) -> None:
    """Outside reference: the mean that StaticEmbedding computes from the same table."""
    pytest.importorskip("sentence_transformers", reason="needs the embed extra")
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer

    encoder.save(tmp_path)
    with np.load(tmp_path / embedding.TABLE_FILE) as arrays:
        weights = arrays["codes"] * arrays["scales"][:, None]
    tokenizer = Tokenizer.from_file(str(tmp_path / embedding.TOKENIZER_FILE))
    module = StaticEmbedding(tokenizer, embedding_weights=weights.astype(np.float32))
    texts = ["Which planet is the largest?", "def add(a, b): return a + b"]
    expected = module(module.tokenize(texts))["sentence_embedding"].detach().numpy()
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(encoder.encode(texts)[:, : expected.shape[1]], expected, atol=1e-5)
