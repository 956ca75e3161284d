"""Prices, windows and abilities from litellm's map, into a pool."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from router_ml.configuration import is_count, is_number
from router_ml.cost import LongContext
from router_ml.parameters import import_litellm
from router_ml.pool import ModelPool, ModelSpec


def refresh(
    pool: ModelPool, price_map: Mapping[str, Mapping[str, Any]] | None = None
) -> tuple[ModelPool, tuple[str, ...]]:
    """Reread prices, windows and abilities from litellm's price map; everything else in the pool is kept.

    A reliable window that is not given is set to a cautious one: three quarters of the window, and never above
    ``context.reliability_threshold``. Of tariffs for long prompts the one of the lowest mark is read. What providers
    ask for batches, for priority or at night a pool does not model.

    :param price_map: model -> facts, in the form of ``litellm.model_cost``; None: the map of the installed litellm.
    :return: the new pool, and the names of the candidates that the map does not know, which are left as they were.
    :raises MissingExtraError: if litellm is needed and not installed.
    """
    known = _litellm_prices() if price_map is None else price_map
    specs: list[ModelSpec] = []
    missing: list[str] = []
    for spec in pool.models:
        entry = _lookup(spec.call_name, known)
        if entry is None:
            missing.append(spec.name)
            specs.append(spec)
        else:
            specs.append(dataclasses.replace(spec, **_facts(spec, entry, pool.context.reliability_threshold)))
    return dataclasses.replace(pool, models=tuple(specs)), tuple(missing)


_PRICE_KEYS = {
    "input_usd_per_mtok": "input_cost_per_token",
    "output_usd_per_mtok": "output_cost_per_token",
    "cached_input_usd_per_mtok": "cache_read_input_token_cost",
}
_MARK = re.compile(r"(?:input_cost_per_token|output_cost_per_token|cache_read_input_token_cost)_above_(\d+)(k?)_tokens")
_ABILITY_KEYS = {
    "vision": "supports_vision", "pdf": "supports_pdf_input", "video": "supports_video_input",
    "audio": "supports_audio_input", "tools": "supports_function_calling", "json_schema": "supports_response_schema",
    "reasoning": "supports_reasoning", "computer_use": "supports_computer_use",
}  # fmt: skip


def _litellm_prices() -> Mapping[str, Mapping[str, Any]]:
    prices: Mapping[str, Mapping[str, Any]] = import_litellm().model_cost
    return prices


def _lookup(call_name: str, known: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any] | None:
    if call_name in known:
        return known[call_name]
    provider, _, bare = call_name.partition("/")
    entry = known.get(bare)
    # the same bare name may belong to another provider: a local copy of a hosted model must not get its price
    if entry is None or not str(entry.get("litellm_provider", provider)).startswith(provider):
        return None
    return entry


def _facts(spec: ModelSpec, entry: Mapping[str, Any], reliability_threshold: int) -> dict[str, Any]:
    found: dict[str, Any] = _prices(entry)
    long = _long_context(entry)
    if long is not None:
        found["long_context"] = long
    found |= {name: entry[name] for name in ("max_input_tokens", "max_output_tokens") if is_count(entry.get(name))}
    if any(key in entry for key in _ABILITY_KEYS.values()):
        found["abilities"] = frozenset(ability for ability, key in _ABILITY_KEYS.items() if entry.get(key))
    window = found.get("max_input_tokens", spec.max_input_tokens)
    if window is not None:
        cautious = min(window * 3 // 4, reliability_threshold)
        found["reliable_input_tokens"] = min(spec.reliable_input_tokens or cautious, window)
    return found


def _prices(entry: Mapping[str, Any], suffix: str = "") -> dict[str, float]:
    """What the map says of a million tokens, by our names. :param suffix: of litellm's keys."""
    # rounded because 1e-07 * 1e6 is 0.09999999999999999
    return {
        ours: round(entry[key + suffix] * 1e6, 6)
        for ours, key in _PRICE_KEYS.items()
        if is_number(entry.get(key + suffix))
    }


def _long_context(entry: Mapping[str, Any]) -> LongContext | None:
    """The tariff of long prompts; a price that is not stated for them stays that of short ones, as litellm reads it."""
    marks = {
        int(mark[1]) * (1000 if mark[2] else 1): f"_above_{mark[1]}{mark[2]}_tokens"
        for key in entry
        if is_number(entry[key]) and (mark := _MARK.fullmatch(key))
    }
    usual = _prices(entry)
    if not marks or not {"input_usd_per_mtok", "output_usd_per_mtok"} <= usual.keys():
        return None
    above = min(marks)
    return LongContext(above_input_tokens=above, **{**usual, **_prices(entry, marks[above])})
