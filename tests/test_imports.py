"""What may import what, and what an import may cost."""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

import router_ml

ROOT = Path(__file__).resolve().parents[1]
SERVING = sorted((ROOT / "router_ml").rglob("*.py"))
OFFLINE = {
    "fastapi", "joblib", "jsonschema", "litellm", "matplotlib", "mlflow", "openai", "opentelemetry", "pandas",
    "prometheus_client", "psycopg", "pyarrow", "redis", "scipy", "sentence_transformers", "skops", "sqlalchemy",
    "uvicorn",
}  # fmt: skip
HEAVY = sorted(OFFLINE | {"sklearn", "torch", "training", "transformers"})


def imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield (node.module or "").partition(".")[0]


def imported_on_load(tree: ast.Module) -> set[str]:
    """Top-level packages that importing the module imports: those outside functions and TYPE_CHECKING blocks."""
    body = [
        node
        for node in tree.body
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        and not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    ]
    return set(imported(ast.Module(body=body, type_ignores=[])))


def loaded_by(code: str) -> set[str]:
    """Which of HEAVY a fresh interpreter has loaded after ``code``."""
    report = f"import sys, json; print(json.dumps([m for m in {HEAVY!r} if m in sys.modules]))"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]  # type: ignore[no-any-return]


@pytest.mark.parametrize("path", SERVING, ids=lambda path: path.stem)
def test_serving_never_imports_training(path: Path) -> None:
    names = set(imported(ast.parse(path.read_text(encoding="utf-8"))))
    assert "training" not in names


@pytest.mark.parametrize("path", SERVING, ids=lambda path: path.stem)
def test_heavy_libraries_are_imported_inside_functions_only(path: Path) -> None:
    assert not imported_on_load(ast.parse(path.read_text(encoding="utf-8"))) & {*HEAVY, "tokenizers", "yaml"}


def test_a_decision_loads_no_heavy_library(router_path: Path) -> None:
    code = f"from router_ml import Router, predict_route; predict_route('hi', router=Router.load({str(router_path)!r}))"
    assert loaded_by(code) == set()


def test_the_route_command_loads_no_heavy_library(router_path: Path) -> None:
    arguments = ["route", "hi", "--json", "--router", str(router_path)]
    assert loaded_by(f"from router_ml.cli import main; assert main({arguments!r}) == 0") == set()


def test_listing_the_commands_loads_no_heavy_library() -> None:
    # the package training itself is empty; finding a module in it imports it
    assert loaded_by("from router_ml.cli import main; assert main(['--help']) == 0") <= {"training"}


def test_public_names_are_these_and_load() -> None:
    assert set(router_ml.__all__) == {
        "ModelPool", "OutcomeLog", "RouteDecision", "RouteRequest", "Router", "RouterError", "VerifierSpec",
        "acomplete", "complete", "predict_route",
    }  # fmt: skip
    for name in router_ml.__all__:
        assert getattr(router_ml, name).__module__.startswith("router_ml.")


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        router_ml.no_such_name  # noqa: B018


def test_both_packages_are_typed() -> None:
    assert (ROOT / "router_ml" / "py.typed").is_file() and (ROOT / "training" / "py.typed").is_file()


def test_the_base_install_has_no_torch_and_no_library_of_an_extra() -> None:
    base = {requirement.partition(">")[0] for requirement in project()["dependencies"]}
    assert base == {"click", "joblib", "numpy", "pyyaml", "rich", "scikit-learn", "tokenizers"}


@pytest.mark.parametrize("name", sorted(project()["entry-points"]["router_ml.commands"]))
def test_every_plugged_command_is_a_click_command_of_that_name(name: str) -> None:
    module, _, attribute = project()["entry-points"]["router_ml.commands"][name].partition(":")
    try:
        command = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as exc:
        if (exc.name or "").startswith("training"):
            raise
        pytest.skip(f"{exc.name} is not installed (extra train)")
    assert isinstance(command, click.Command) and command.name == name and command.help


def test_the_version_is_the_one_of_the_package() -> None:
    assert router_ml.__version__ == project()["version"]
