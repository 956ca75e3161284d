"""A router whose models answer from the fault server, for tests of what carries a decision out."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from router_ml.pool import ModelPool, ModelSpec
from router_ml.router import Router

KEY_VARIABLE = "ROUTER_ML_TEST_KEY"
KEY = "sk-test-0123456789abcdef"
# cheapest first, as in the simulated world; the last is the escalation model
PRICES = {"other/mini": (0.1, 0.4), "acme/small": (0.2, 0.8), "acme/medium": (1.0, 4.0), "acme/large": (3.0, 15.0),
          "other/max": (5.0, 25.0)}  # fmt: skip


def wire_name(model: str) -> str:
    """The model as the server is asked for it."""
    return model.replace("/", "-")


def acting_pool(
    path: Path, url: str | None = None, changes: Mapping[str, Any] | None = None, **fields: Any
) -> ModelPool:
    """The pool of the router at ``path``, priced by tokens, its models behind ``url``.

    :param changes: model -> fields of its ModelSpec. :param fields: of the pool.
    """
    os.environ[KEY_VARIABLE] = KEY
    pool = Router.load(path).pool

    def spec(old: ModelSpec) -> ModelSpec:
        read, write = PRICES[old.name]
        common = {
            "input_usd_per_mtok": read, "output_usd_per_mtok": write, "cached_input_usd_per_mtok": read / 10,
            "cost_per_request_usd": None, "call_as": f"openai/{wire_name(old.name)}", "api_key_env": KEY_VARIABLE,
            "api_base": None if url is None else f"{url}/v1", "abilities": frozenset({"tools", "json_schema"}),
        }  # fmt: skip
        return dataclasses.replace(old, **(common | (changes or {}).get(old.name, {})))

    # most requests of these tests are unlike the simulated ones that the router was trained on
    fields = {"unlike": "ignore"} | fields
    return dataclasses.replace(pool, models=tuple(map(spec, pool.models)), escalation_model="other/max", **fields)


def acting_router(
    path: Path, url: str | None = None, changes: Mapping[str, Any] | None = None, **fields: Any
) -> Router:
    """The router at ``path`` with ``acting_pool``."""
    return Router.load(path, pool=acting_pool(path, url, changes, **fields), seed=0)
