"""Train the bundled router from the public outcome tables that may train it.

    python -m training.bundle --data PATH_TO_TABLES --out models/default

None of these tables holds a model of the default pool, so every probability is a prior: what makes a request hard is
learned, where a model stands is taken from published results (``training/model_facts.yaml``). The artifact says so.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from router_ml.pool import ModelPool
from training.ability import load_facts
from training.bundled import TRAINING_SOURCES, fit_bundled, leave_one_source_out, read_public_tables, written_table
from training.fitting import Fitted, default_encoder, save_router

NOTE = (
    "No outcome of this very model: difficulty is learned from public outcome tables of other models, the model is "
    "placed by published results of itself and its relatives. Train on your own outcomes to replace this prior."
)


def bundle(data: Path, out: Path, *, seed: int = 0) -> dict[str, float]:
    """Fit, measure on sources left out, save. :return: the day-0 figures."""
    encoder, facts, pool = default_encoder(), load_facts(), ModelPool.default()
    tables = read_public_tables(data, encoder, facts)
    written = written_table(encoder)
    rows = leave_one_source_out(tables, written, facts, seed=seed)
    request_map, success, length, metadata = fit_bundled(tables, written, pool, facts, seed=seed, day_0=rows)
    sample = np.concatenate([t.source.inputs for t in [*tables, written]]).astype(np.float32)
    digest = hashlib.sha256(b"".join((data / f"{name}.parquet").read_bytes() for name in TRAINING_SOURCES))
    save_router(
        out, Fitted(request_map, success, length, sample), pool, encoder, "output_tokens",
        {
            "evidence": {"kind": "prior", "note": NOTE},
            "training": {"data_fingerprint": digest.hexdigest(), "seed": seed, "n_requests": len(sample), **metadata},
            "metrics": {"day_0": metadata["day_0"]},
        },
    )  # fmt: skip
    return {key: metadata["day_0"][key] for key in ("auc", "ece")}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the public tables (Parquet)")
    parser.add_argument("--out", type=Path, required=True, help="folder to write the router to")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    figures = bundle(args.data, args.out, seed=args.seed)
    print("; ".join(f"day-0 {name} {value:.3f}" for name, value in figures.items()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
