"""A saved router: a folder of plain arrays and JSON that a loader checks before it believes any of it.

Layout::

    manifest.json            protocol, versions, models, encoder, training data, metrics, digests of all other files
    pool.json                the pool
    classifier.npz           the arrays that serve
    encoder/tokenizer.json   \\ the static encoder (absent for a sentence-transformers encoder)
    encoder/embedding.npz    /
    estimator.skops          the fitted scikit-learn estimators, for retraining and inspection; serving never reads it

The manifest is written last, so a folder with one is whole. Nothing here is a pickle and none is ever loaded.

Protocol 1 is this layout. A change that an older reader would misread raises ``PROTOCOL`` and keeps a reader for the
old one; an artifact of every protocol stays in ``tests/data`` and must load.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from router_ml.classifier import SuccessClassifier
from router_ml.embedding import Encoder, SentenceTransformerEncoder, StaticEncoder
from router_ml.errors import ArtifactDigestError, ArtifactError, ArtifactProtocolError, EncoderMismatchError
from router_ml.features import FEATURE_NAMES
from router_ml.pool import ModelPool

PROTOCOL = 1
MANIFEST = "manifest.json"
POOL = "pool.json"
CLASSIFIER = "classifier.npz"
ENCODER = "encoder"
ESTIMATOR = "estimator.skops"
REQUIRED = frozenset({"protocol", "router_version", "models", "feature_names", "encoder", "cost_unit", "digests"})
COST_UNITS = frozenset({"usd", "output_tokens"})


@dataclass(frozen=True)
class Artifact:
    """The parts of a router. ``manifest`` is what the folder says of itself."""

    pool: ModelPool
    classifier: SuccessClassifier
    encoder: Encoder
    manifest: dict[str, Any]


def save(
    path: str | Path, *, pool: ModelPool, classifier: SuccessClassifier, encoder: Encoder, cost_unit: str,
    router_version: str, estimator: bytes | None = None, extra: dict[str, Any] | None = None,
) -> Path:  # fmt: skip
    """Write a router. The folder appears whole or not at all; one that is there is replaced.

    :param cost_unit: what the classifier's cost means: "usd" per request, or "output_tokens" to be priced by the pool.
    :param estimator: the fitted estimators in skops format.
    :param extra: what else the manifest should hold: evidence, training data, metrics with n.
    :raises ArtifactError: if the parts do not belong together or the target is a file.
    """
    target = Path(path)
    if target.exists() and not target.is_dir():
        raise ArtifactError(f"{target} is a file; a router is saved as a folder")
    if classifier.n_models != len(pool.models):
        raise ArtifactError(f"the classifier predicts {classifier.n_models} models, the pool has {len(pool.models)}")
    if cost_unit not in COST_UNITS:
        raise ArtifactError(f"cost_unit is {cost_unit!r}; expected one of {sorted(COST_UNITS)}")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch:
        folder = Path(scratch) / "router"
        folder.mkdir()
        _write(folder / POOL, json.dumps(pool.to_dict(), indent=1).encode())
        buffer = io.BytesIO()
        np.savez(buffer, **classifier.to_arrays())  # type: ignore[arg-type]
        _write(folder / CLASSIFIER, buffer.getvalue())
        if isinstance(encoder, StaticEncoder):
            encoder.save(folder / ENCODER)
        if estimator is not None:
            _write(folder / ESTIMATOR, estimator)
        manifest = {
            "protocol": PROTOCOL, "router_version": router_version, "models": list(pool.names),
            "feature_names": list(FEATURE_NAMES), "encoder": encoder.describe(), "cost_unit": cost_unit,
            **(extra or {}), "digests": {name: _digest(folder / name) for name in _files(folder)},
        }  # fmt: skip
        _write(folder / MANIFEST, json.dumps(manifest, indent=1).encode())
        if target.exists():
            shutil.rmtree(target)
        os.replace(folder, target)
    return target


def read_manifest(path: str | Path) -> dict[str, Any]:
    """The manifest of a saved router, checked for shape and protocol, nothing else read.

    :raises ArtifactError: if there is none, or it is not one. :raises ArtifactProtocolError: if it is too new.
    """
    folder = Path(path)
    if folder.is_file():
        raise ArtifactError(f"{folder} is a file; a router is a folder with a {MANIFEST} (a pickle is never loaded)")
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError as exc:
        raise ArtifactError(f"{folder}: no router there ({MANIFEST} is missing)") from exc
    except (OSError, ValueError) as exc:
        raise ArtifactError(f"{folder / MANIFEST} cannot be read: {exc}") from exc
    if not isinstance(manifest, dict) or not isinstance(manifest.get("protocol"), int):
        raise ArtifactError(f"{folder / MANIFEST} is not a router's manifest: it has no protocol number")
    if manifest["protocol"] > PROTOCOL:
        raise ArtifactProtocolError(
            f"{folder} was written by protocol {manifest['protocol']}, this version reads up to {PROTOCOL}; "
            "upgrade router-ml"
        )
    missing = sorted(REQUIRED - set(manifest))
    if missing:
        raise ArtifactError(f"{folder / MANIFEST} lacks {missing}")
    return manifest


def load(path: str | Path, *, encoder: Encoder | None = None) -> Artifact:
    """Read a router after checking the digest of every file.

    :param encoder: use this encoder; it must be the one the router was trained with.
    :raises ArtifactDigestError: if a file is missing, changed or cut short.
    :raises EncoderMismatchError: if the encoder or the feature set is another one.
    """
    folder = Path(path)
    manifest = read_manifest(folder)
    _check_digests(folder, manifest["digests"])
    if tuple(manifest["feature_names"]) != FEATURE_NAMES:
        raise EncoderMismatchError(
            f"{folder} was trained on {len(manifest['feature_names'])} hand-built features, this version computes "
            f"{len(FEATURE_NAMES)} others; train again, or install the version that wrote it"
        )
    try:
        pool = ModelPool.from_dict(json.loads((folder / POOL).read_text(encoding="utf-8")), where=str(folder / POOL))
        with np.load(folder / CLASSIFIER, allow_pickle=False) as arrays:
            classifier = SuccessClassifier.from_arrays({name: arrays[name] for name in arrays.files})
    except (OSError, ValueError) as exc:
        raise ArtifactError(f"{folder} cannot be read: {exc}") from exc
    if list(pool.names) != manifest["models"] or classifier.n_models != len(pool.models):
        raise ArtifactError(f"{folder}: manifest, pool and classifier name different models")
    return Artifact(pool, classifier, _load_encoder(folder, manifest["encoder"], encoder), manifest)


def _load_encoder(folder: Path, described: dict[str, Any], given: Encoder | None) -> Encoder:
    if given is not None:
        if given.fingerprint != described["fingerprint"]:
            raise EncoderMismatchError(
                f"{folder} was trained with encoder {described['fingerprint'][:12]} ({described['kind']}), "
                f"the one given is {given.fingerprint[:12]}"
            )
        return given
    if described["kind"] == "static":
        # its files have just been checked against the manifest, so the fingerprint need not be computed again
        return StaticEncoder.load(folder / ENCODER)
    if described["kind"] == "sentence-transformers":
        return SentenceTransformerEncoder(described["name"], expected_fingerprint=described["fingerprint"])
    raise EncoderMismatchError(f"{folder} needs an encoder of kind {described['kind']!r}; pass it as encoder=...")


def _check_digests(folder: Path, digests: dict[str, str]) -> None:
    if POOL not in digests or CLASSIFIER not in digests:
        raise ArtifactError(f"{folder / MANIFEST} lists no digest for {POOL} and {CLASSIFIER}")
    for name, expected in digests.items():
        file = folder / name
        if ".." in Path(name).parts or Path(name).is_absolute():
            raise ArtifactError(f"{folder / MANIFEST} names a file outside the artifact: {name!r}")
        if not file.is_file():
            raise ArtifactDigestError(f"{file} is missing; copy the artifact again")
        found = _digest(file)
        if found != expected:
            raise ArtifactDigestError(
                f"{file} is not the file that was saved: digest {found[:12]}..., expected {str(expected)[:12]}...; "
                "it was cut short or edited; copy the artifact again"
            )


def _files(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _write(file: Path, content: bytes) -> None:
    file.write_bytes(content)
