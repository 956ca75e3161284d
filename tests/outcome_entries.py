"""Entries for the outcome log's tests, and a process that writes them.

    python tests/outcome_entries.py URL NAME COUNT

writes COUNT entries and prints the id of each that the log has acknowledged.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np

from router_ml.attempt import Attempt, AttemptKind, Usage, Verdict
from router_ml.errors import RateLimitedError
from router_ml.outcomes import Entry, OutcomeLog, Receipt
from router_ml.request import Candidate, Evidence, Reason, ReasonCode, RouteDecision, RouteRequest

CHEAP, DEAR = "acme/small", "acme/large"


def decision(decision_id: str = "d1", **changes: Any) -> RouteDecision:
    """A decision for CHEAP, then DEAR."""
    values: dict[str, Any] = {
        "decision_id": decision_id, "model": CHEAP, "confidence": 0.8, "plan_confidence": 0.95, "escalated": False,
        "degraded": False, "reason": Reason(ReasonCode.CHEAPEST_LIKELY, "cheapest likely enough"),
        "candidates": (Candidate(CHEAP, 0.8, 0.001, 0.4, None), Candidate(DEAR, 0.95, 0.02, None, "too slow")),
        "plan": (CHEAP, DEAR), "params": {}, "expected_cost_usd": 0.001, "baseline_cost_usd": 0.02,
        "propensity": 0.9, "evidence": Evidence("measured", 100, 0.3, ""), "router_version": "0.1.0+abc",
    }  # fmt: skip
    return RouteDecision(**values | changes)


def attempt(model: str = CHEAP, stage: int = 0, **changes: Any) -> Attempt:
    """A call that was answered; ``accepted`` says what a verifier said."""
    accepted = changes.pop("accepted", None)
    verdict = None if accepted is None else Verdict(accepted, "" if accepted else "no JSON", 0.0005, 0.1)
    values: dict[str, Any] = {
        "kind": AttemptKind.ANSWER, "started_at": 1_700_000_000.0 + stage, "latency_s": 0.5, "cost_usd": 0.002,
        "usage": Usage(12, 34, 5), "verdict": verdict,
    }  # fmt: skip
    return Attempt(model, stage=stage, **values | changes)


def failed(model: str = CHEAP, stage: int = 0) -> Attempt:
    """A call that a rate limit refused."""
    return attempt(model, stage, cost_usd=0.0, usage=Usage(), error=RateLimitedError("slow down", model=model))


def entry(decision_id: str = "d1", *attempts: Attempt, **changes: Any) -> Entry:
    """An entry of one session; its arrays are those of no real request."""
    made = changes.pop("decision", None) or decision(decision_id)
    request = changes.pop("request", None) or RouteRequest("What is 2+2?", session_id="s", task="math", tags=["team-a"])
    values: dict[str, Any] = {
        "features": np.arange(4, dtype=np.float64), "embedding": np.arange(3, dtype=np.float32), "policy": "threshold",
        "encoder": "e" * 64, "input_tokens": 12, "baseline_cost_usd": 0.03,
    }  # fmt: skip
    return Entry(made, request, attempts=attempts, **values | changes)


def write(url: str, name: str, count: int) -> None:
    """Write entries and print each id once it is acknowledged."""
    waiting: list[tuple[str, Receipt]] = []
    with OutcomeLog(url, queue_size=2_000) as log:
        for i in range(count):
            decision_id = f"{name}-{i}"
            waiting.append((decision_id, log.record(entry(decision_id, failed(), attempt(DEAR, 0, accepted=True)))))
            if i % 100 == 99 or i == count - 1:
                if i == count - 1:
                    log.flush()
                acknowledged = [decision_id for decision_id, receipt in waiting if receipt.done]
                waiting = [pair for pair in waiting if not pair[1].done]
                print("".join(f"{decision_id}\n" for decision_id in acknowledged), end="", flush=True)
                time.sleep(0.002)


if __name__ == "__main__":
    write(sys.argv[1], sys.argv[2], int(sys.argv[3]))
