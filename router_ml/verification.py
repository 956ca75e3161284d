"""Answers checked on the way: the verifier is run, its calls are paid for, and a check that breaks loses no answer."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from router_ml.attempt import Verdict
from router_ml.completion import Call, Client, cost_of
from router_ml.configuration import is_number
from router_ml.errors import VerifierError
from router_ml.request import RouteRequest

if TYPE_CHECKING:
    from router_ml.answer import Answer, Verifier
    from router_ml.live import Course, LiveRouter

TOOL_CALLS = ("tool_calls", "function_call", "tool_use")  # reasons of an end that is a step, not an answer

logger = logging.getLogger("router_ml")

Ask = Callable[[str, list[dict[str, Any]]], tuple[str, float]]


def asker(
    live: LiveRouter, client: Callable[[], Client], request: RouteRequest, spent: list[float], timeout_s: float
) -> Ask:
    """What a judge or a compressor calls a model with. Blocks.

    :param client: gives what calls the models. :param spent: takes the cost of every call.
    """

    def ask(model: str, messages: list[dict[str, Any]]) -> tuple[str, float]:
        spec = live.router.pool.spec(model)
        reply = client().complete(Call(spec, messages, {}, timeout_s))
        cost = 0.0 if reply.cache_hit else cost_of(spec, reply.usage)
        spent.append(cost)
        live.spend(request.tags, cost)
        return reply.text, cost

    return ask


def check(
    live: LiveRouter, client: Callable[[], Client], course: Course, text: str, finish_reason: str | None,
    timeout_s: float,
) -> Verdict | None:  # fmt: skip
    """Check the answer that the last attempt of a course gave. Blocks for as long as its verifier does.

    :return: None if there is no verifier, if the answer only calls tools, or if the check broke: that says nothing.
    """
    verifier = course.verifier
    if verifier is None or finish_reason in TOOL_CALLS:
        return None
    from router_ml.answer import Answer

    spent: list[float] = []
    request = course.reading.request
    answer = Answer(text, request, finish_reason, asker(live, client, request, spent, timeout_s))
    try:
        verdict = _verdict(verifier, answer)
    except VerifierError as exc:
        logger.warning("an answer was not checked: %s", exc)
        attempt = course.attempts[-1]  # a check that broke has cost its calls all the same
        course.attempts[-1] = dataclasses.replace(attempt, cost_usd=attempt.cost_usd + sum(spent))
        return None
    # what broke inside, such as one of several checks, has cost too; what a check paid elsewhere is not booked yet
    if verdict.cost_usd > sum(spent):
        live.spend(request.tags, verdict.cost_usd - sum(spent))
    return verdict._replace(cost_usd=max(verdict.cost_usd, sum(spent)))


def _verdict(verifier: Verifier, answer: Answer) -> Verdict:
    try:
        verdict = verifier.verify(answer)
    except VerifierError:
        raise
    except Exception as exc:  # a verifier of the caller's own; its message may quote the answer
        raise VerifierError(f"{type(verifier).__name__} broke: {type(exc).__name__}") from None
    if not isinstance(verdict, Verdict) or not is_number(verdict.cost_usd) or verdict.cost_usd < 0.0:
        raise VerifierError(f"{type(verifier).__name__} gave no Verdict with a cost >= 0")
    return verdict
