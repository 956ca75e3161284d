"""A saved router comes back equal or not at all: every damage is one documented error."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_router import EXPECTED, REQUESTS, STORED, save_tiny_router, tiny_encoder

from router_ml import artifact
from router_ml.artifact import CLASSIFIER, ENCODER, MANIFEST, POOL, PROTOCOL
from router_ml.errors import ArtifactDigestError, ArtifactError, ArtifactProtocolError, EncoderMismatchError
from router_ml.router import Router

FILES = (POOL, CLASSIFIER, f"{ENCODER}/tokenizer.json", f"{ENCODER}/embedding.npz")


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("artifact") / "router"
    save_tiny_router(path)
    return path


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def edit_json(file: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(file.read_text(encoding="utf-8"))
    edit(content)
    file.write_text(json.dumps(content), encoding="utf-8")


def seal(folder: Path) -> None:
    """Make the digests match the files as they are now, as somebody who edits an artifact on purpose would."""
    digests = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in FILES}
    edit_json(folder / MANIFEST, lambda manifest: manifest.update(digests=digests))


def edit_arrays(folder: Path, **changes: Any) -> None:
    with np.load(folder / CLASSIFIER) as arrays:
        content = {name: arrays[name] for name in arrays.files}
    np.savez(folder / CLASSIFIER, **{k: v for k, v in {**content, **changes}.items() if v is not None})
    seal(folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def assert_refused(folder: Path, error: type[ArtifactError] = ArtifactError, match: str | None = None) -> None:
    with pytest.raises(ArtifactError, match=match) as caught:
        Router.load(folder)
    assert type(caught.value) is error
    assert str(caught.value).strip()


# --- what is saved comes back


def test_a_loaded_router_predicts_what_the_saved_one_did(saved: Path, tmp_path: Path) -> None:
    first = Router.load(saved)
    parts = artifact.load(saved)
    artifact.save(
        tmp_path / "again", pool=parts.pool, classifier=parts.classifier, encoder=parts.encoder, cost_unit="usd",
        router_version="second",
    )  # fmt: skip
    second = Router.load(tmp_path / "again")
    np.testing.assert_array_equal(first.predict_proba(REQUESTS), second.predict_proba(REQUESTS))
    np.testing.assert_array_equal(first.predict_cost(REQUESTS), second.predict_cost(REQUESTS))
    assert first.pool == second.pool
    assert second.predict("Hi").router_version == "second"


def test_the_manifest_alone_tells_what_the_router_is(saved: Path) -> None:
    manifest = artifact.read_manifest(saved)
    assert manifest["protocol"] == PROTOCOL
    assert tuple(manifest["models"]) == Router.load(saved).models
    assert set(manifest["digests"]) == set(FILES)


def test_the_stored_router_of_protocol_1_still_gives_its_probabilities() -> None:
    expected = json.loads(EXPECTED.read_text(encoding="utf-8"))
    assert artifact.read_manifest(STORED)["protocol"] == 1
    router = Router.load(STORED)
    np.testing.assert_allclose(router.predict_proba(expected["requests"]), expected["p_success"], rtol=0, atol=1e-9)
    np.testing.assert_allclose(router.predict_cost(expected["requests"]), expected["expected_cost_usd"], rtol=1e-9)


def test_an_artifact_moved_elsewhere_loads(folder: Path, tmp_path: Path) -> None:
    moved = folder.rename(tmp_path / "moved to a folder with spaces")
    assert Router.load(str(moved)).predict("Hi").model


def test_the_encoder_the_router_was_trained_with_may_be_given(saved: Path) -> None:
    encoder = artifact.load(saved).encoder
    assert artifact.load(saved, encoder=encoder).encoder is encoder


# --- damage


def test_no_folder_is_an_artifact_error(tmp_path: Path) -> None:
    assert_refused(tmp_path / "nowhere", match="no router there")


def test_a_missing_manifest_is_an_artifact_error(folder: Path) -> None:
    (folder / MANIFEST).unlink()
    assert_refused(folder, match="manifest.json is missing")


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_a_digest_error(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert_refused(folder, ArtifactDigestError, "missing")


@pytest.mark.parametrize("name", FILES)
def test_a_folder_in_place_of_a_file_is_a_digest_error(folder: Path, name: str) -> None:
    (folder / name).unlink()
    (folder / name).mkdir()
    assert_refused(folder, ArtifactDigestError)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_a_digest_error(folder: Path, name: str, share: float) -> None:
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: int(len(content) * share)])
    assert_refused(folder, ArtifactDigestError, "cut short or edited")


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
@pytest.mark.parametrize("name", FILES)
def test_an_edited_byte_is_a_digest_error(folder: Path, name: str, share: float) -> None:
    content = bytearray((folder / name).read_bytes())
    content[int(len(content) * share)] ^= 1
    (folder / name).write_bytes(content)
    assert_refused(folder, ArtifactDigestError, "cut short or edited")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_truncated_file_with_a_matching_digest_is_an_artifact_error(folder: Path, name: str, share: float) -> None:
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: int(len(content) * share)])
    seal(folder)
    assert_refused(folder)


def test_every_truncation_of_the_manifest_is_an_artifact_error(folder: Path) -> None:
    content = (folder / MANIFEST).read_bytes()
    for size in range(0, len(content) - 1, 97):
        (folder / MANIFEST).write_bytes(content[:size])
        assert_refused(folder)


@pytest.mark.parametrize(
    "content", [b"", b"null", b"[]", b"3", b'"protocol"', b"{}", b"\xff\xfe", b"[" * 200_000, b'{"protocol": 1}']
)
def test_a_manifest_that_is_none_is_an_artifact_error(folder: Path, content: bytes) -> None:
    (folder / MANIFEST).write_bytes(content)
    assert_refused(folder)


@pytest.mark.parametrize("protocol", ["1", None, True, 1.0, 0, -1, [1]])
def test_a_protocol_that_is_no_number_is_an_artifact_error(folder: Path, protocol: Any) -> None:
    edit_json(folder / MANIFEST, lambda manifest: manifest.update(protocol=protocol))
    assert_refused(folder, match="no protocol number")


def test_a_newer_protocol_is_a_protocol_error_whatever_else_it_holds(folder: Path) -> None:
    (folder / MANIFEST).write_text(json.dumps({"protocol": PROTOCOL + 1}), encoding="utf-8")
    assert_refused(folder, ArtifactProtocolError, "upgrade router-ml")


@pytest.mark.parametrize("key", sorted(artifact.REQUIRED - {"protocol"}))
@pytest.mark.parametrize("value", [None, 3, "x", [], {}, [[1]], {"kind": "static"}, {"kind": []}, {"pool.json": 1}])
def test_an_entry_of_another_form_is_an_artifact_error(folder: Path, key: str, value: Any) -> None:
    if key == "router_version" and value == "x":
        value = 1.5  # any string is a version
    edit_json(folder / MANIFEST, lambda manifest: manifest.update({key: value}))
    with pytest.raises(ArtifactError):
        Router.load(folder)


@pytest.mark.parametrize("key", sorted(artifact.REQUIRED))
def test_a_manifest_without_an_entry_is_an_artifact_error(folder: Path, key: str) -> None:
    edit_json(folder / MANIFEST, lambda manifest: manifest.pop(key))
    assert_refused(folder, match=key)


@pytest.mark.parametrize("evidence", [None, "measured", [], {"kind": "guess"}, {"kind": []}])
def test_evidence_of_another_form_is_an_artifact_error(folder: Path, evidence: Any) -> None:
    edit_json(folder / MANIFEST, lambda manifest: manifest.update(evidence=evidence))
    assert_refused(folder, match="evidence")


@pytest.mark.parametrize(
    "entry", [{"unlike": 0.05}, {"unlike": {}}, {"unlike": {"rate": 1.5}}, {"unlike": {"rate": True}}, {"shipped": "x"},
              {"shipped": {"policy": 1, "why": ""}}, {"shipped": {}}],
)  # fmt: skip
def test_optional_entries_of_another_form_are_an_artifact_error(folder: Path, entry: dict[str, Any]) -> None:
    edit_json(folder / MANIFEST, lambda manifest: manifest.update(entry))
    assert_refused(folder, match=next(iter(entry)))


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "encoder/../../secret"])
def test_a_manifest_that_names_a_file_outside_the_folder_is_refused(folder: Path, name: str) -> None:
    (folder.parent / "secret").write_bytes(b"x")
    digest = hashlib.sha256(b"x").hexdigest()
    edit_json(folder / MANIFEST, lambda manifest: manifest["digests"].update({name: digest}))
    assert_refused(folder, match="outside the artifact")


@pytest.mark.parametrize("name", ["nul\0l", "x" * 5_000, "", "\ud800"])
def test_a_manifest_that_names_no_file_is_a_digest_error(folder: Path, name: str) -> None:
    edit_json(folder / MANIFEST, lambda manifest: manifest["digests"].update({name: "0" * 64}))
    assert_refused(folder, ArtifactDigestError)


# --- pickles


class Payload:
    """Creates the file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def test_the_payload_of_these_tests_works(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Payload(tmp_path / "executed")))
    assert (tmp_path / "executed").exists()


def test_a_pickle_in_place_of_the_folder_is_refused_unread(tmp_path: Path) -> None:
    (tmp_path / "router.pkl").write_bytes(pickle.dumps(Payload(tmp_path / "executed")))
    assert_refused(tmp_path / "router.pkl", match="a pickle is never loaded")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("sealed", [False, True])
def test_a_pickle_in_place_of_a_file_is_never_executed(folder: Path, tmp_path: Path, name: str, sealed: bool) -> None:
    (folder / name).write_bytes(pickle.dumps(Payload(tmp_path / "executed")))
    if sealed:
        seal(folder)
    assert_refused(folder, ArtifactError if sealed else ArtifactDigestError)
    assert not (tmp_path / "executed").exists()


def test_an_array_of_pickled_objects_is_never_executed(folder: Path, tmp_path: Path) -> None:
    edit_arrays(folder, gamma=np.array([Payload(tmp_path / "executed")], dtype=object))
    assert_refused(folder, match="classifier")
    assert not (tmp_path / "executed").exists()


def test_one_array_in_place_of_the_named_arrays_is_refused(folder: Path) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    (folder / CLASSIFIER).write_bytes(buffer.getvalue())
    seal(folder)
    assert_refused(folder, match="not a classifier's arrays")


# --- parts that do not belong together, each with matching digests


def test_other_feature_names_are_a_mismatch(folder: Path) -> None:
    edit_json(folder / MANIFEST, lambda manifest: manifest["feature_names"].reverse())
    assert_refused(folder, EncoderMismatchError, "features")


def test_another_encoder_than_the_trained_one_is_a_mismatch(saved: Path) -> None:
    other = tiny_encoder(["another text"] * 5)
    with pytest.raises(EncoderMismatchError, match="trained with encoder"):
        Router.load(saved, encoder=other)


def test_files_of_another_encoder_are_a_mismatch(folder: Path) -> None:
    tiny_encoder(["another text"] * 5).save(folder / ENCODER)
    seal(folder)
    assert_refused(folder, EncoderMismatchError, "encoder files")


def test_an_encoder_of_a_kind_nobody_knows_must_be_given(folder: Path) -> None:
    edit_json(folder / MANIFEST, lambda manifest: manifest["encoder"].update(kind="home-made"))
    assert_refused(folder, EncoderMismatchError, "pass it as encoder")


def _rename(pool: dict[str, Any]) -> None:
    old = pool["models"][0]["name"]
    pool["models"][0]["name"] = "somebody/else"
    if pool["escalation_model"] == old:
        pool["escalation_model"] = "somebody/else"


@pytest.mark.parametrize(
    "edit",
    [
        _rename,
        lambda pool: pool["models"].reverse(),
        lambda pool: pool["models"].append({"name": "one/more", "cost_per_request_usd": 1.0}),
        lambda pool: pool.update(models=[]),
        lambda pool: pool.update(models=None),
        lambda pool: pool.update(escalation_model="nobody"),
        lambda pool: pool.update(confidence_threshold="high"),
        lambda pool: pool.clear(),
    ],
)
def test_an_edited_pool_that_does_not_fit_is_an_artifact_error(folder: Path, edit: Callable[[Any], Any]) -> None:
    edit_json(folder / POOL, edit)
    seal(folder)
    assert_refused(folder)


@pytest.mark.parametrize("content", [b"null", b"[]", b"\xff", b"[" * 200_000])
def test_a_pool_that_is_none_is_an_artifact_error(folder: Path, content: bytes) -> None:
    (folder / POOL).write_bytes(content)
    seal(folder)
    assert_refused(folder)


def array_names() -> list[str]:
    with np.load(STORED / CLASSIFIER) as arrays:
        return sorted(arrays.files)


@pytest.mark.parametrize("name", array_names())
@pytest.mark.parametrize(
    "value", [None, np.zeros((3, 5, 2)), np.array("text"), np.array(np.nan), np.zeros(0), np.array([1j])]
)
def test_an_array_that_does_not_fit_is_an_artifact_error(folder: Path, name: str, value: Any) -> None:
    if name == "tasks" and value is not None and not value.size:
        value = np.array(["one"])  # the stored router knows no task, so that having none would fit
    edit_arrays(folder, **{name: value})
    assert_refused(folder, match="classifier")


@pytest.mark.parametrize(
    ("name", "factor"), [("feature_scale", 0.0), ("cost_smearing", -1.0), ("cost_high", 1e4), ("cost_low", 1e4)]
)
def test_numbers_that_no_training_gives_are_an_artifact_error(folder: Path, name: str, factor: float) -> None:
    with np.load(folder / CLASSIFIER) as arrays:
        content = arrays[name] * factor
    edit_arrays(folder, **{name: content})
    assert_refused(folder, match=name)


def test_a_classifier_for_another_encoder_width_is_an_artifact_error(folder: Path) -> None:
    with np.load(folder / CLASSIFIER) as arrays:
        wider = np.vstack([arrays["projection"], arrays["projection"]])
        center = np.concatenate([arrays["center"], arrays["center"]])
    edit_arrays(folder, projection=wider, center=center)
    assert_refused(folder, match="vectors of")


# --- saving


def test_saving_over_a_router_replaces_it_whole(folder: Path) -> None:
    (folder / "estimator.skops").write_bytes(b"of the old one")
    before = Router.load(folder).predict_proba(REQUESTS)
    saved = save_tiny_router(folder, seed=1)
    assert set(contents(folder)) == {MANIFEST, *FILES}
    assert np.abs(saved.predict_proba(REQUESTS) - before).max() > 1e-3
    assert sorted(p.name for p in folder.parent.iterdir()) == [folder.name]


@pytest.mark.parametrize("nth", range(4))
def test_a_save_that_is_interrupted_leaves_the_old_router(
    folder: Path, monkeypatch: pytest.MonkeyPatch, nth: int
) -> None:
    """The disk is full at the nth file."""
    before, real, written = contents(folder), Path.write_bytes, [0]

    def full(file: Path, content: bytes) -> int:
        written[0] += 1
        if written[0] > nth:
            raise OSError("no space left on device")
        return real(file, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="no space left"):
        save_tiny_router(folder, seed=1)
    assert contents(folder) == before
    assert sorted(p.name for p in folder.parent.iterdir()) == [folder.name]


@pytest.mark.parametrize("nth", [1, 2])
def test_a_renaming_that_fails_leaves_the_old_router(folder: Path, monkeypatch: pytest.MonkeyPatch, nth: int) -> None:
    before, real, calls = contents(folder), os.replace, [0]

    def fails_once(source: Path, target: Path) -> None:
        calls[0] += 1
        if calls[0] == nth:
            raise PermissionError("not now")
        real(source, target)

    monkeypatch.setattr(os, "replace", fails_once)
    with pytest.raises(PermissionError, match="not now"):
        save_tiny_router(folder, seed=1)
    assert contents(folder) == before


def test_a_first_save_that_is_interrupted_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: Path, content: bytes) -> int:
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="no space left"):
        save_tiny_router(tmp_path / "router")
    assert list(tmp_path.iterdir()) == []


def test_saving_over_a_file_or_over_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.txt").write_bytes(b"mine")
    with pytest.raises(ArtifactError, match="is a file"):
        save_tiny_router(tmp_path / "file")
    with pytest.raises(ArtifactError, match="would be lost"):
        save_tiny_router(tmp_path / "folder")
    assert contents(tmp_path) == {"file": b"mine", "folder/thesis.txt": b"mine"}


def test_parts_that_do_not_belong_together_are_not_saved(saved: Path, tmp_path: Path) -> None:
    parts, stored = artifact.load(saved), artifact.load(STORED)
    fewer = type(parts.pool)(parts.pool.models[:2], parts.pool.models[0].name)
    with pytest.raises(ArtifactError, match="the pool has 2"):
        artifact.save(
            tmp_path / "router", pool=fewer, classifier=parts.classifier, encoder=parts.encoder, cost_unit="usd",
            router_version="x",
        )  # fmt: skip
    with pytest.raises(ArtifactError, match="cost_unit"):
        artifact.save(
            tmp_path / "router", pool=stored.pool, classifier=parts.classifier, encoder=parts.encoder,
            cost_unit="euro", router_version="x",
        )  # fmt: skip
    assert not (tmp_path / "router").exists()
