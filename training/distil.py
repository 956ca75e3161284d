"""Distil the static embedding from all-MiniLM-L6-v2.

    python -m training.distil --model PATH_TO_ALL_MINILM_L6_V2 --out models/encoder

Every word piece is sent through the transformer on its own; principal components and a smooth inverse frequency
weight (Arora et al., ICLR 2017) follow. The steps are those of model2vec, which this script runs (a build-time tool:
``pip install 'model2vec[distill]' sentence-transformers``). The result goes through sentence-transformers'
``StaticEmbedding``, is stored as int8 with one scale per piece, and is checked against it.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from router_ml.embedding import StaticEncoder

DIMENSION = 256
# all-MiniLM-L6-v2 as its authors published it
MODEL_DIGEST = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def distil(model_path: Path, dimension: int = DIMENSION) -> StaticEncoder:
    """Distil a static encoder from a local copy of the model.

    :param model_path: folder with ``model.safetensors``.
    :raises ValueError: if the weights are not those of all-MiniLM-L6-v2.
    """
    from model2vec.distill import distill as distill_static
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    digest = hashlib.sha256((model_path / "model.safetensors").read_bytes()).hexdigest()
    if digest != MODEL_DIGEST:
        raise ValueError(
            f"{model_path} holds weights {digest[:12]}...; expected all-MiniLM-L6-v2, {MODEL_DIGEST[:12]}..."
        )
    static = distill_static(str(model_path), pca_dims=dimension)
    embedding = StaticEmbedding(static.tokenizer, embedding_weights=static.embedding.astype(np.float32))
    weights = embedding.embedding.weight.detach().numpy()
    return StaticEncoder(static.tokenizer.to_str().encode(), *quantise(weights))


def quantise(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Symmetric int8 with one scale per row.

    :param weights: (n, d) float. :return: codes (n, d) int8, scales (n,) float32.
    """
    scales = np.maximum(np.abs(weights).max(axis=1), 1e-12) / 127.0
    return np.round(weights / scales[:, None]).astype(np.int8), scales.astype(np.float32)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of all-MiniLM-L6-v2")
    parser.add_argument("--out", type=Path, required=True, help="folder to write the encoder to")
    args = parser.parse_args(argv)
    distil(args.model).save(args.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
