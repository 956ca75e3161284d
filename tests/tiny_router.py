"""A router small enough to keep in the repository, and the artifact of protocol 1 that every later version must read.

``python tests/tiny_router.py`` writes ``tests/data/protocol_1`` and what it predicts. It is run once per protocol, and
again only while that protocol is not released.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from router_ml import artifact
from router_ml.embedding import StaticEncoder
from router_ml.features import FEATURE_NAMES
from router_ml.router import Router
from training.estimator import CostEstimator, RequestMap, SuccessEstimator
from training.fitting import Fitted, pool_from_table, represent
from training.simulate import World

WIDTH = 6
N_REQUESTS = 60
STORED = Path(__file__).with_name("data") / "protocol_1"
EXPECTED = STORED.with_suffix(".json")
REQUESTS: tuple[Any, ...] = (
    "What is 2+2?",
    "Write a function that parses dates.\n```python\ndef parse(s): ...\n```",
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Translate 'good morning' to Finnish."}],
    {"prompt": "Which of these is prime? A) 4 B) 7 C) 9", "max_output_tokens": 50},
    "naïve café 東京 🤖 \ud800",
)


def tiny_encoder(texts: list[str], seed: int = 0) -> StaticEncoder:
    """A static encoder of the words that occur in at least five texts, each at a random place."""
    words = [set(re.findall(r"[a-z]+", text.lower())) for text in texts]
    common = sorted(word for word in set().union(*words) if sum(word in one for one in words) >= 5)
    vocabulary = {word: i for i, word in enumerate(["[UNK]", *common])}
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "post_processor": None,
        "decoder": None, "normalizer": {"type": "Lowercase"}, "pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"},
    }  # fmt: skip
    rng = np.random.default_rng(seed)
    codes = rng.integers(-127, 128, (len(vocabulary), WIDTH)).astype(np.int8)
    return StaticEncoder(json.dumps(tokenizer).encode(), codes, np.full(len(vocabulary), 0.01, np.float32))


def save_tiny_router(path: Path, *, seed: int = 0) -> Router:
    """Train on a few simulated requests and save; another seed, another router of the same models."""
    table = World(7).sample(N_REQUESTS, seed=seed).table
    encoder = tiny_encoder([str(prompt) for prompt in table.prompts], seed)
    representation = represent(table.prompts, encoder)
    joined = representation.joined
    request_map = RequestMap(n_components=4, n_landmarks=12, random_state=seed)
    request_map.fit(joined, n_features=len(FEATURE_NAMES))
    phi = request_map.transform(joined)
    score, cost = table.dense("score"), table.dense("cost_usd")
    success = np.where(np.isnan(score), np.nan, (score >= 0.5).astype(float))
    fitted = Fitted(
        request_map,
        SuccessEstimator(random_state=seed).fit(phi, success, task=table.task, groups=table.group),
        CostEstimator(random_state=seed).fit(phi, cost, groups=table.group),
        joined,
    )
    artifact.save(
        path, pool=pool_from_table(table), classifier=fitted.classifier(), encoder=encoder, cost_unit="usd",
        router_version=f"tiny-{seed}",
        extra={"evidence": {"kind": "measured", "note": f"{table.n_rows} simulated outcomes"}},
    )  # fmt: skip
    return Router.load(path)


def main() -> None:
    router = save_tiny_router(STORED)
    expected = {
        "requests": REQUESTS,
        "p_success": router.predict_proba(REQUESTS).tolist(),
        "expected_cost_usd": router.predict_cost(REQUESTS).tolist(),
    }
    EXPECTED.write_text(json.dumps(expected, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
