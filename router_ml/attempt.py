"""What happened when a decision was carried out: attempts, their verdicts, their cost.

These facts cross modules: ``completion`` makes them, ``cascade`` collects them, ``outcomes`` logs them.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import NamedTuple

from router_ml.errors import ProviderError


class AttemptKind(enum.StrEnum):
    """What a call was for."""

    ANSWER = "answer"
    COMPRESSION = "compression"  # a cheap model shortened the prompt


class Usage(NamedTuple):
    """Tokens as the provider counted them. ``cached_tokens`` are those of the input that it read from its cache."""

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0


NO_TOKENS = Usage()


class Verdict(NamedTuple):
    """What a verifier said of an answer.

    :param detail: why it was rejected, one sentence; may be empty if accepted. Never the answer's text itself.
    :param cost_usd: what the check cost, such as a judge's call. :param latency_s: seconds it took.
    """

    accepted: bool
    detail: str = ""
    cost_usd: float = 0.0
    latency_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Attempt:
    """One call of one model.

    :param model: the candidate, by its name in the pool.
    :param stage: position in the plan, from 0; fallbacks after an error stay in their stage.
    :param started_at: seconds since 1970. :param latency_s: seconds until the whole answer or the error was there.
    :param cost_usd: from real usage, without the verifier's cost.
    :param verdict: None if nobody checked the answer.
    :param error: None if the call gave an answer.
    :param cache_hit: the answer came from the response cache and cost nothing.
    """

    model: str
    kind: AttemptKind
    stage: int
    started_at: float
    latency_s: float
    cost_usd: float = 0.0
    usage: Usage = NO_TOKENS
    verdict: Verdict | None = None
    error: ProviderError | None = None
    cache_hit: bool = False

    @property
    def total_cost_usd(self) -> float:
        """Cost of the call and of its check."""
        return self.cost_usd + (self.verdict.cost_usd if self.verdict is not None else 0.0)
