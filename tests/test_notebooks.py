"""The notebooks run, cell by cell in plain Python, and what their text says of the numbers is so."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def cells(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return found


def run(path: Path) -> dict[str, Any]:
    """Run all code cells in one namespace, and return it."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for cell in cells(path):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"{path.name}, cell {cell['id']}", "exec"), names)
    return names


@pytest.fixture(autouse=True)
def _as_in_jupyter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The notebooks' folder, pictures drawn to nowhere, and the one class of IPython that they need."""
    import matplotlib.pyplot as plt

    plt.switch_backend("agg")
    ipython: Any = ModuleType("IPython")
    # matplotlib asks an IPython that it finds for these
    ipython.version_info, ipython.get_ipython = (9, 0), lambda: None
    display: Any = ModuleType("IPython.display")
    display.Image = lambda filename, width: Path(filename).read_bytes()
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(FOLDER)
    yield
    for number in plt.get_fignums():
        plt.figure(number).canvas.draw()  # what cannot be drawn fails here
    plt.close("all")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_kept_without_outputs_and_listed(path: Path) -> None:
    code = [cell for cell in cells(path) if cell["cell_type"] == "code"]
    assert code and not any(cell["outputs"] or cell["execution_count"] for cell in code)
    assert len({cell["id"] for cell in cells(path)}) == len(cells(path))
    assert f"`{path.name}`" in (FOLDER / "README.md").read_text(encoding="utf-8")


def test_there_is_a_test_for_each_notebook() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["cascades", "explore"]


def test_explore() -> None:
    names = run(FOLDER / "explore.ipynb")
    assert set(names["trained"].models) == set(names["table"].models)
    assert set(names["pictures"]) >= {"reliability", "cost_quality"}


def test_cascades() -> None:
    names = run(FOLDER / "cascades.ipynb")
    # routing by the prompt stops where the strongest model stops; checking answers does not
    reached = {label: points[:, 1].max() for label, points in names["points"].items()}
    quality = names["singles"][names["strong"], 1]
    assert reached["router"] <= quality + 0.01
    assert min(reached[f"plans, {label}"] for label in names["verifiers"]) > quality + 0.02
    # the worse the verifier, the dearer the strongest model's quality
    shares = [names["shares"][label] for label in ("plans, 1/0", "plans, .95/.05", "plans, .90/.20", "router")]
    assert shares == sorted(shares) and shares[-2] < 0.8 * shares[-1]
    # failures taken for independent promise too much; learned to go together, they do not
    over = {label: names["promised"][label] - names["kept"][label] for label in names["promised"]}
    assert over["as if independent"] > 0.03 > 0.02 > abs(over["dependence learned"])
    assert names["low"] < 0.0 < names["high"]  # of the latter, sessions resampled
    # rows: the verifier gets worse; columns: a failure gets dearer
    kind = names["kind"]
    assert (kind[:, 0] == 0).all() and (kind[0, -1], kind[-1, -1]) == (1, 3) and set(np.unique(kind)) == {0, 1, 2, 3}
    assert len(names["decision"].plan) > 1 and names["decision"].stages
    assert names["promise"]["promised"] and names["quality_kept"][names["at"]] >= 0.95
