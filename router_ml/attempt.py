"""What happened when a decision was carried out: attempts, their verdicts, their cost.

These facts cross modules: ``completion`` makes them, ``cascade`` collects them, ``outcomes`` logs them.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from router_ml.errors import ProviderError

if TYPE_CHECKING:
    from router_ml.completion import Reply
    from router_ml.outcomes import Receipt
    from router_ml.request import RouteDecision


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

    def to_dict(self) -> dict[str, Any]:
        """The attempt as JSON-ready built-in types."""
        out: dict[str, Any] = {name: getattr(self, name) for name in self.__dataclass_fields__}
        out["kind"] = self.kind.value
        out["usage"] = self.usage._asdict()
        out["verdict"] = None if self.verdict is None else self.verdict._asdict()
        out["error"] = None if self.error is None else {"kind": type(self.error).__name__, "text": str(self.error)}
        return out


@dataclass(frozen=True, slots=True)
class Completion:
    """An answer, with the decision and the attempts that led to it.

    :param model: the candidate that answered; not that of the decision after a fallback or an escalation.
    :param accepted: what the verifier said of this answer; None: nobody checked it. False: the plan has no further
        stage, so the best answer there is comes back all the same.
    :param baseline_cost_usd: what the escalation model would have cost on this request, by the tokens really used;
        0 for an answer from the response cache, which would have saved that call too.
    :param receipt: of the outcome log; None without a log.
    """

    text: str
    model: str
    decision: RouteDecision
    attempts: tuple[Attempt, ...]
    reply: Reply
    accepted: bool | None
    baseline_cost_usd: float
    receipt: Receipt | None = None

    @property
    def response(self) -> Any:
        """The answer in OpenAI's form, ``model`` naming the candidate that answered."""
        return self.reply.response

    @property
    def cost_usd(self) -> float:
        """Cost of all attempts and of their checks."""
        return sum(attempt.total_cost_usd for attempt in self.attempts)

    @property
    def saving_usd(self) -> float:
        """Saved against the escalation model, net of failed attempts, checks and compression; negative if lost."""
        return self.baseline_cost_usd - self.cost_usd

    def to_dict(self) -> dict[str, Any]:
        """Answer, decision and attempts as JSON-ready built-in types."""
        return {
            "text": self.text, "model": self.model, "accepted": self.accepted, "cost_usd": self.cost_usd,
            "baseline_cost_usd": self.baseline_cost_usd, "saving_usd": self.saving_usd,
            "attempts": [attempt.to_dict() for attempt in self.attempts], "decision": self.decision.to_dict(),
        }  # fmt: skip
