"""A caller's parameters as a provider takes them: passed on, translated, or dropped with one warning.

litellm knows what each provider takes; it is asked once for each model and set of parameters, and only here and in
``completion`` is it imported at all.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from router_ml.errors import MissingExtraError, RequestError
from router_ml.pool import ModelSpec
from router_ml.request import RouteRequest

# Tokens of thought -> the effort that asks for about as many, where a provider knows only efforts. litellm maps
# efforts to 1024, 2048 and 4096 tokens; the bounds lie between.
_EFFORTS = ((1_536, "low"), (3_072, "medium"))

log = logging.getLogger("router_ml")

Message = Mapping[str, Any]


def import_litellm() -> Any:
    """litellm, set up to stay off the network and silent.

    :raises MissingExtraError: if it is not installed.
    """
    # without this, importing litellm fetches its price map from the network
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    try:
        import litellm
    except ImportError as exc:
        raise MissingExtraError("litellm", "llm") from exc
    litellm.suppress_debug_info = True  # else it prints to standard output at every error
    litellm.telemetry = False
    return litellm


def accepted(
    spec: ModelSpec, messages: Sequence[Message], params: Mapping[str, Any]
) -> tuple[list[Message], dict[str, Any]]:
    """Messages and parameters that the provider takes.

    What it does not take is translated where that is possible (``thinking`` and ``reasoning_effort`` into each other,
    a schema in ``response_format`` into an instruction), else dropped; each with one warning a model.
    """
    out = {name: value for name, value in params.items() if value is not None}
    known = list(messages)
    for name in _untaken(spec, out) if out else ():
        value = out.pop(name)
        if name == "tools" and "tools" in spec.abilities:
            out |= {"tools": value, "allowed_openai_params": ["tools"]}  # the pool knows better than litellm's table
            continue
        instead = _translated(spec, name, value, out)
        if name == "response_format" and instead is None:
            known = _instructed(known, _format_instruction(value))
            _warn_once(spec.name, name, "turned into an instruction")
        elif instead is None:
            _warn_once(spec.name, name, "dropped")
        else:
            out |= instead
            _warn_once(spec.name, name, f"turned into {', '.join(instead)}")
    return known, out


def _untaken(spec: ModelSpec, params: Mapping[str, Any]) -> tuple[str, ...]:
    # values that make up a key: numbers and words; of larger ones, and of those that all differ, only the name matters
    small = tuple(
        sorted((k, v if k not in _IDS and isinstance(v, (int, float, str)) else None) for k, v in params.items())
    )
    found = _untaken_of.get((spec.call_name, small))
    if found is None:
        if len(_untaken_of) >= 10_000:  # a caller with a new temperature every time
            _untaken_of.clear()
        found = _untaken_of[spec.call_name, small] = _try_params(spec.call_name, params)
    return found


_IDS = frozenset({"user", "prompt_cache_key", "safety_identifier", "seed"})
_untaken_of: dict[tuple[str, Any], tuple[str, ...]] = {}


def _try_params(call_name: str, params: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of parameters that litellm would refuse for this model, found by its own check."""
    litellm = import_litellm()
    try:
        model, provider, _, _ = litellm.get_llm_provider(call_name)
    except Exception:  # an unknown provider: the call itself says so better
        return ()

    def refused(some: Mapping[str, Any]) -> bool:
        try:
            litellm.utils.get_optional_params(model=model, custom_llm_provider=provider, **some)
        except litellm.UnsupportedParamsError:
            return True
        except Exception:  # not a question of support: the call itself finds it
            return False
        return False

    checked = {name: value for name, value in params.items() if name in _openai_params(litellm)}
    if not refused(checked):  # together first: a temperature may be taken only beside a reasoning effort of "none"
        return ()
    return tuple(name for name, value in checked.items() if refused({name: value}))


@cache
def _openai_params(litellm: Any) -> frozenset[str]:
    return frozenset(litellm.OPENAI_CHAT_COMPLETION_PARAMS) - {"stream", "stream_options", "user", "messages", "model"}


def _translated(spec: ModelSpec, name: str, value: Any, others: Mapping[str, Any]) -> dict[str, Any] | None:
    if name == "thinking" and isinstance(value, Mapping) and "reasoning_effort" not in others:
        tokens = value.get("budget_tokens") or 0
        effort = next((e for most, e in _EFFORTS if tokens < most), "high")
        instead = {"reasoning_effort": effort if value.get("type") != "disabled" else "none"}
    elif name == "max_completion_tokens" and "max_tokens" not in others:
        instead = {"max_tokens": value}
    else:
        return None
    return None if _untaken(spec, instead) else instead


def _format_instruction(value: Any) -> str:
    schema = value.get("json_schema", {}).get("schema") if isinstance(value, Mapping) else None
    what = f" that matches this JSON schema: {json.dumps(schema)}" if schema else ""
    return f"Answer with one JSON value and nothing else{what}."


def _instructed(messages: list[Message], instruction: str) -> list[Message]:
    """With an instruction in the system message: many chat templates take one only, and only at the beginning."""
    head = messages[0] if messages else {}
    if head.get("role") in ("system", "developer") and isinstance(head.get("content"), str):
        return [{**head, "content": f"{head['content']}\n\n{instruction}"}, *messages[1:]]
    return [{"role": "system", "content": instruction}, *messages]


_warned: set[tuple[str, str]] = set()


def _warn_once(model: str, name: str, what: str) -> None:
    if (model, name) not in _warned:
        _warned.add((model, name))
        log.warning("%s does not take the parameter %s: %s (said once)", model, name, what)


def with_limits_of(request: RouteRequest, params: Mapping[str, Any]) -> RouteRequest:
    """The request with the limits that the call's parameters imply, so that guards see them.

    :raises RequestError: for a parameter that would replace what is to be decided.
    """
    if taken := sorted({"model", "messages"} & params.keys()):
        raise RequestError(f"{taken} came as parameters; messages are the request, and `pin` in it asks for a model")
    known: dict[str, Any] = {}
    most = params.get("max_tokens") or params.get("max_completion_tokens")
    if most is not None:  # also over a limit of the request's own: this one is sent
        known["max_output_tokens"] = most
    if not request.tools and params.get("tools"):
        known["tools"] = params["tools"]
    return dataclasses.replace(request, **known) if known else request


def call_params(request: RouteRequest, params: Mapping[str, Any]) -> dict[str, Any]:
    """The call's parameters, with what the request itself says of them."""
    out = dict(params)
    if request.tools and "tools" not in out:
        out["tools"] = list(request.tools)
    if request.max_output_tokens is not None and not {"max_tokens", "max_completion_tokens"} & set(out):
        out["max_tokens"] = request.max_output_tokens
    return out


def messages_of(request: RouteRequest) -> list[dict[str, Any]]:
    """The request as OpenAI-style messages."""
    messages = request.messages
    return [{"role": "user", "content": messages}] if isinstance(messages, str) else [dict(m) for m in messages]
