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
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from router_ml.classifier import SuccessClassifier
from router_ml.cost import is_turns_entry
from router_ml.dependence import MAX_LOADING
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
EVIDENCE = frozenset({"measured", "prior"})


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
    :raises ArtifactError: if the parts do not belong together, or the target is a file or a folder of something else.
    """
    target = Path(path)
    if target.exists() and not target.is_dir():
        raise ArtifactError(f"{target} is a file; a router is saved as a folder")
    if target.exists() and any(target.iterdir()) and not (target / MANIFEST).is_file():
        raise ArtifactError(f"{target} holds files that are not a router's and would be lost; name a new folder")
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
        _put_in_place(folder, target, Path(scratch) / "replaced")
    return target


def _put_in_place(folder: Path, target: Path, aside: Path) -> None:
    """Rename ``folder`` to ``target``; what was there goes aside first, and comes back if the renaming fails."""
    if not target.exists():
        os.replace(folder, target)
        return
    os.replace(target, aside)
    try:
        os.replace(folder, target)
    except BaseException:
        os.replace(aside, target)
        raise


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
    except (OSError, ValueError, RecursionError) as exc:
        raise ArtifactError(f"{folder / MANIFEST} cannot be read: {exc}") from exc
    if not isinstance(manifest, dict) or type(manifest.get("protocol")) is not int or manifest["protocol"] < 1:
        raise ArtifactError(f"{folder / MANIFEST} is not a router's manifest: it has no protocol number")
    if manifest["protocol"] > PROTOCOL:
        raise ArtifactProtocolError(
            f"{folder} was written by protocol {manifest['protocol']}, this version reads up to {PROTOCOL}; "
            "upgrade router-ml"
        )
    missing = sorted(REQUIRED - set(manifest))
    if missing:
        raise ArtifactError(f"{folder / MANIFEST} lacks {missing}")
    wrong = [name for name, fits in _shape(manifest).items() if not fits]
    if wrong:
        raise ArtifactError(f"{folder / MANIFEST} has entries that protocol {PROTOCOL} does not allow: {wrong}")
    return manifest


def _shape(manifest: dict[str, Any]) -> dict[str, bool]:
    """For each entry that is read, whether its form is that of the protocol."""
    encoder, digests, evidence = manifest["encoder"], manifest["digests"], manifest.get("evidence", {})
    return {
        "router_version": isinstance(manifest["router_version"], str),
        "models": _is_names(manifest["models"]),
        "feature_names": _is_names(manifest["feature_names"]),
        "encoder": isinstance(encoder, dict)
        and all(isinstance(encoder.get(key), str) for key in ("kind", "fingerprint"))
        and (encoder["kind"] != "sentence-transformers" or isinstance(encoder.get("name"), str)),
        "cost_unit": isinstance(manifest["cost_unit"], str) and manifest["cost_unit"] in COST_UNITS,
        "digests": isinstance(digests, dict) and _is_names(list(digests.values())),
        "evidence": isinstance(evidence, dict) and evidence.get("kind", "measured") in tuple(EVIDENCE),
        "dependence": _is_dependence(manifest.get("dependence", {})),
        "promise": "promise" not in manifest or _is_promise(manifest["promise"]),
        "shipped": "shipped" not in manifest or _is_shipped(manifest["shipped"]),
        "unlike": "unlike" not in manifest or _is_unlike(manifest["unlike"]),
        "turns_to_come": "turns_to_come" not in manifest or is_turns_entry(manifest["turns_to_come"]),
    }


def _is_dependence(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("loadings", {}), dict):
        return False
    limits = [(one, MAX_LOADING) for one in value.get("loadings", {}).values()] + [(value.get("hopeless", 0.0), 1.0)]
    return all(type(one) in (int, float) and 0.0 <= one <= most for one, most in limits)


def _is_promise(value: Any) -> bool:
    """What ``train --target-quality`` promised; ``router-ml promises`` reads it."""
    return (
        isinstance(value, dict)
        and all(_is_share(value.get(key)) for key in ("target_quality", "confidence"))
        and isinstance(value.get("escalation_model"), str)
        and isinstance(value.get("by_task", {}), dict)
        and all(_is_part(part) for part in (value, *value.get("by_task", {}).values()))
    )


def _is_part(value: Any) -> bool:
    """A promise of all requests, or of those of one task."""
    return (
        isinstance(value, dict)
        and all(_is_share(value.get(key)) for key in ("threshold", *(("level",) if "level" in value else ())))
        and isinstance(value.get("promised"), bool)
        and isinstance(value.get("reason"), str)
    )


def _is_share(value: Any) -> bool:
    return isinstance(value, float) and 0.0 <= value <= 1.0


def _is_shipped(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(key), str) for key in ("policy", "why"))


def _is_unlike(value: Any) -> bool:
    return isinstance(value, dict) and _is_share(value.get("rate")) and value["rate"] < 1.0


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def load(path: str | Path, *, encoder: Encoder | None = None) -> Artifact:
    """Read a router after checking the digest of every file.

    :param encoder: use this encoder; it must be the one the router was trained with.
    :raises ArtifactError: if there is no router, or its parts contradict each other.
    :raises ArtifactDigestError: if a file is missing, changed or cut short.
    :raises ArtifactProtocolError: if a newer version wrote it.
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
    pool, classifier = _load_pool(folder / POOL), _load_classifier(folder / CLASSIFIER)
    if list(pool.names) != manifest["models"] or classifier.n_models != len(pool.models):
        raise ArtifactError(f"{folder}: manifest, pool and classifier name different models")
    found = _load_encoder(folder, manifest["encoder"], encoder)
    widths = (len(classifier.feature_mean), len(classifier.projection))
    # the width of a sentence-transformers encoder is not known before its model is loaded, at the first request
    width = found.dim if isinstance(found, StaticEncoder) else manifest["encoder"].get("dim")
    if widths != (len(FEATURE_NAMES), width):
        raise ArtifactError(
            f"{folder}: the classifier takes {widths[0]} features and vectors of {widths[1]}; this version computes "
            f"{len(FEATURE_NAMES)} features, and the encoder gives vectors of {width}"
        )
    return Artifact(pool, classifier, found, manifest)


def _load_pool(file: Path) -> ModelPool:
    try:
        return ModelPool.from_dict(json.loads(file.read_text(encoding="utf-8")), where=str(file))
    except (OSError, ValueError, RecursionError) as exc:
        raise ArtifactError(f"{file} cannot be read: {exc}") from exc


def _load_classifier(file: Path) -> SuccessClassifier:
    try:
        # np.load leaves a file that it opened itself open if it is not what it should be
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            return SuccessClassifier.from_arrays({name: arrays[name] for name in arrays.files})
    except ArtifactError as exc:
        raise ArtifactError(f"{file}: {exc}") from exc
    except Exception as exc:  # numpy, zipfile and zlib raise a dozen kinds on a file that is not what its name says
        raise ArtifactError(f"{file} is not a classifier's arrays: {exc}") from exc


def _load_encoder(folder: Path, described: dict[str, Any], given: Encoder | None) -> Encoder:
    if given is not None:
        if given.fingerprint != described["fingerprint"]:
            raise EncoderMismatchError(
                f"{folder} was trained with encoder {described['fingerprint'][:12]} ({described['kind']}), "
                f"the one given is {given.fingerprint[:12]}"
            )
        return given
    if described["kind"] == "static":
        found = StaticEncoder.load(folder / ENCODER)
        # equal files are not enough: how this version pools word pieces is part of the fingerprint
        if found.fingerprint != described["fingerprint"]:
            raise EncoderMismatchError(
                f"{folder} was trained with encoder {described['fingerprint'][:12]}, its encoder files give "
                f"{found.fingerprint[:12]} in this version; train again, or install the version that wrote it"
            )
        return found
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
        try:
            found = _digest(file)
        except (OSError, ValueError) as exc:  # ValueError: a name with a null character
            raise ArtifactDigestError(f"{file} is missing or cannot be read; copy the artifact again ({exc})") from exc
        if found != expected:
            raise ArtifactDigestError(
                f"{file} is not the file that was saved: digest {found[:12]}..., expected {expected[:12]}...; "
                "it was cut short or edited; copy the artifact again"
            )


def _files(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _write(file: Path, content: bytes) -> None:
    file.write_bytes(content)
