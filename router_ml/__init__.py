"""Learned LLM routing: for every request the cheapest model likely to do the job, with an honest probability.

    from router_ml import predict_route
    decision = predict_route("Summarise this ticket: ...")
    decision.model, decision.confidence, decision.reason.text

Names load at first use, so ``import router_ml`` costs next to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from router_ml.errors import RouterError
    from router_ml.outcomes import OutcomeLog
    from router_ml.pool import ModelPool
    from router_ml.request import RouteDecision, RouteRequest, VerifierSpec
    from router_ml.router import Router, acomplete, complete, predict_route

__version__ = "0.1.0"
__all__ = [
    "ModelPool",
    "OutcomeLog",
    "RouteDecision",
    "RouteRequest",
    "Router",
    "RouterError",
    "VerifierSpec",
    "acomplete",
    "complete",
    "predict_route",
]

_HOME = {
    "ModelPool": "pool",
    "OutcomeLog": "outcomes",
    "RouteDecision": "request",
    "RouteRequest": "request",
    "Router": "router",
    "RouterError": "errors",
    "VerifierSpec": "request",
    "acomplete": "router",
    "complete": "router",
    "predict_route": "router",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'router_ml' has no attribute {name!r}; it offers {__all__}")
    from importlib import import_module

    value = getattr(import_module(f"router_ml.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
