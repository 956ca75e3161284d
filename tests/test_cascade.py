"""A decision carried out: stages, fallbacks, retries, money, sessions; by a fake client and by litellm over HTTP."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from acting import acting_router
from hypothesis import given
from hypothesis import strategies as st

from router_ml.attempt import AttemptKind, Usage, Verdict
from router_ml.cascade import Cascade, Completion
from router_ml.completion import Call, Chunk, FakeClient, Reply
from router_ml.errors import (
    AttemptsFailedError,
    BudgetExceededError,
    CallRefusedError,
    ContentRefusedError,
    ContextTooLongError,
    CredentialsError,
    ModelGoneError,
    NoEligibleModelError,
    ProviderError,
    ProviderTimeoutError,
    ProviderUnavailableError,
    RateLimitedError,
    RequestError,
)
from router_ml.live import LiveRouter
from router_ml.outcomes import OutcomeLog
from router_ml.pool import Breaker, Budgets, Fallback, Rule
from router_ml.reliability import verifier_name
from router_ml.request import RouteRequest, VerifierSpec
from router_ml.router import Router
from router_ml.verifiers import AllOf, Check, Judge, MinimumLength

CHEAP, STRONG = "other/mini", "other/max"
ASK = RouteRequest("What is 2 + 2?", allow=[CHEAP, STRONG], min_quality=0.01)  # the cheap model is chosen first


def answers(by_model: dict[str, Any], default: Any = "fine") -> FakeClient:
    """A client whose models answer as given; a list is consumed, a call each, its last entry stays."""

    def answer(call: Call) -> str | Reply | ProviderError:
        found = by_model.get(call.spec.name, default)
        if isinstance(found, list):
            found = found.pop(0) if len(found) > 1 else found[0]
        return found  # type: ignore[no-any-return]

    return FakeClient(answer)


def tried(completion: Completion) -> list[str]:
    return [attempt.model for attempt in completion.attempts]


@pytest.fixture
def make(router_path: Path) -> Callable[..., Cascade]:
    def cascade(
        by_model: dict[str, Any], *, log: OutcomeLog | None = None, router: Router | None = None, **pool: Any
    ) -> Cascade:
        live = LiveRouter(router or acting_router(router_path, **pool), log=log)
        return Cascade(live, client=answers(by_model), sleep=lambda seconds: None)

    return cascade


@pytest.fixture
def log(tmp_path: Path) -> Iterator[OutcomeLog]:
    with OutcomeLog(f"sqlite:///{tmp_path / 'log.db'}", log_prompts="text") as opened:
        yield opened


def test_an_answer_comes_with_its_decision_attempt_and_cost(make: Callable[..., Cascade]) -> None:
    done = make({CHEAP: Reply("four", Usage(1_000, 500, 200))}).complete(ASK)
    assert (done.text, done.model, done.decision.model, done.accepted) == ("four", CHEAP, CHEAP, None)
    (attempt,) = done.attempts
    assert (attempt.kind, attempt.stage, attempt.error, attempt.usage) == (
        AttemptKind.ANSWER,
        0,
        None,
        (1_000, 500, 200),
    )
    # 800 tokens at .1, 200 at the cached .01, 500 at .4 USD per million
    assert done.cost_usd == pytest.approx((800 * 0.1 + 200 * 0.01 + 500 * 0.4) / 1e6)


def test_the_saving_is_against_the_escalation_model_on_the_tokens_really_used(make: Callable[..., Cascade]) -> None:
    done = make({CHEAP: Reply("four", Usage(1_000, 500))}).complete(ASK)
    assert done.baseline_cost_usd == pytest.approx((1_000 * 5 + 500 * 25) / 1e6)
    assert done.saving_usd == pytest.approx(done.baseline_cost_usd - done.cost_usd)


def test_a_rejected_answer_goes_to_the_next_stage(make: Callable[..., Cascade]) -> None:
    request = dataclasses.replace(ASK, verifier=Check(lambda text: text == "four", "says four"))
    done = make({CHEAP: "five", STRONG: "four"}).complete(request)
    assert done.decision.plan == (CHEAP, STRONG) and tried(done) == [CHEAP, STRONG]
    assert (done.text, done.model, done.accepted) == ("four", STRONG, True)
    first, second = done.attempts
    assert first.verdict is not None and not first.verdict.accepted and (first.stage, second.stage) == (0, 1)


def test_an_accepted_answer_ends_the_plan(make: Callable[..., Cascade]) -> None:
    done = make({CHEAP: "long enough"}).complete(dataclasses.replace(ASK, verifier=MinimumLength(3)))
    assert tried(done) == [CHEAP] and done.accepted is True


def test_where_every_stage_is_rejected_the_last_answer_comes_back_as_rejected(make: Callable[..., Cascade]) -> None:
    done = make({CHEAP: "a", STRONG: "b"}).complete(dataclasses.replace(ASK, verifier=MinimumLength(10)))
    assert (done.text, done.accepted, tried(done)) == ("b", False, [CHEAP, STRONG])


def test_a_rejected_answer_is_kept_if_the_next_stage_fails(make: Callable[..., Cascade]) -> None:
    cascade = make({CHEAP: "a", STRONG: ContentRefusedError("no", model=STRONG)})
    done = cascade.complete(dataclasses.replace(ASK, verifier=MinimumLength(10)))
    assert (done.text, done.accepted, tried(done)) == ("a", False, [CHEAP, STRONG])


def test_a_verifier_that_breaks_loses_no_answer(make: Callable[..., Cascade], caplog: pytest.LogCaptureFixture) -> None:
    def broken(text: str) -> bool:
        raise KeyError(text)

    done = make({CHEAP: "the secret answer"}).complete(dataclasses.replace(ASK, verifier=Check(broken, "broken")))
    assert (done.text, done.accepted, done.attempts[0].verdict) == ("the secret answer", None, None)
    assert "not checked" in caplog.text and "secret" not in caplog.text


def test_a_verifier_of_the_callers_own_may_raise_anything(make: Callable[..., Cascade]) -> None:
    class Own:
        spec = VerifierSpec()
        name = "own"

        def verify(self, answer: Any) -> Any:
            raise ZeroDivisionError

    assert make({CHEAP: "x"}).complete(dataclasses.replace(ASK, verifier=Own())).accepted is None


def test_reliability_alone_plans_a_second_stage_but_checks_nothing(make: Callable[..., Cascade]) -> None:
    done = make({CHEAP: "x"}).complete(dataclasses.replace(ASK, verifier=VerifierSpec()))
    assert done.decision.plan == (CHEAP, STRONG) and tried(done) == [CHEAP] and done.accepted is None


def test_what_a_judge_costs_counts(make: Callable[..., Cascade]) -> None:
    verdict = json.dumps({"accepted": True, "reason": "right"})
    cascade = make({CHEAP: "four", "acme/small": Reply(verdict, Usage(1_000, 0))})
    done = cascade.complete(dataclasses.replace(ASK, verifier=Judge("acme/small", "Is it four?")))
    assert done.accepted is True and done.attempts[0].verdict is not None
    assert done.attempts[0].verdict.cost_usd == pytest.approx(0.2 * 1_000 / 1e6)
    assert done.cost_usd == pytest.approx(done.attempts[0].cost_usd + 0.2 * 1_000 / 1e6)


def test_a_check_that_broke_among_others_has_cost_all_the_same(make: Callable[..., Cascade]) -> None:
    cascade = make({CHEAP: "four", "acme/small": Reply("no verdict", Usage(1_000, 0))})
    both = AllOf(Judge("acme/small", "Is it four?"), MinimumLength(10))
    done = cascade.complete(dataclasses.replace(ASK, allow=[CHEAP], verifier=both))
    assert done.accepted is False
    assert done.cost_usd == pytest.approx(done.attempts[0].cost_usd + 2 * 0.2 * 1_000 / 1e6)  # the judge is asked twice


def test_what_a_check_paid_elsewhere_counts_against_the_cap(make: Callable[..., Cascade]) -> None:
    cascade = make({CHEAP: Reply("x", Usage(0, 0))}, budgets=Budgets(per_day_usd=1.0))
    cascade.complete(dataclasses.replace(ASK, verifier=Check(lambda text: Verdict(True, cost_usd=0.25), "paid")))
    cap = cascade.live.ledger.tightest(())
    assert cap is not None and cap.spent_usd == pytest.approx(0.25, abs=1e-5)


@pytest.mark.parametrize("said", [True, None, (True, ""), Verdict(True, cost_usd=float("nan"))])
def test_what_is_no_verdict_loses_no_answer(make: Callable[..., Cascade], said: Any) -> None:
    class Own:
        spec = VerifierSpec()
        name = "own"

        def verify(self, answer: Any) -> Any:
            return said

    done = make({CHEAP: "x"}).complete(dataclasses.replace(ASK, verifier=Own()))
    assert (done.text, done.accepted) == ("x", None)


def test_a_rule_of_the_pool_brings_its_verifier(make: Callable[..., Cascade]) -> None:
    cascade = make({CHEAP: "short", STRONG: "long enough now"}, tasks={"essay": Rule(verifier={"min_length": 10})})
    assert tried(cascade.complete(dataclasses.replace(ASK, task="essay"))) == [CHEAP, STRONG]
    assert tried(cascade.complete(ASK)) == [CHEAP]


def test_the_log_names_the_verifier_of_a_rule_and_the_task_it_is_for(
    make: Callable[..., Cascade], log: OutcomeLog
) -> None:
    rules = {"essay": Rule(verifier={"min_length": 10})}
    make({CHEAP: "short", STRONG: "long enough now"}, log=log, tasks=rules).complete(
        dataclasses.replace(ASK, task="essay")
    )
    log.flush(30)
    (logged,) = log.decisions()
    assert logged.task == "essay"
    assert [one.verifier for one in logged.attempts] == [verifier_name(MinimumLength(10))] * 2


# -- errors


@pytest.mark.parametrize("error", [RateLimitedError, ProviderUnavailableError])
def test_a_transient_error_is_retried_on_the_same_model(
    make: Callable[..., Cascade], error: type[ProviderError]
) -> None:
    done = make({CHEAP: [error("busy", model=CHEAP), error("busy", model=CHEAP), "four"]}).complete(ASK)
    assert tried(done) == [CHEAP] * 3 and done.text == "four"
    assert [type(attempt.error) for attempt in done.attempts] == [error, error, type(None)]


@pytest.mark.parametrize(
    "error", [CredentialsError, ContentRefusedError, CallRefusedError, ModelGoneError, ProviderError]
)
def test_an_error_that_stays_goes_to_the_next_model_at_once(
    make: Callable[..., Cascade], error: type[ProviderError]
) -> None:
    changes = {STRONG: {"api_key_env": "ANOTHER_KEY"}}
    done = make({CHEAP: error("no", model=CHEAP)}, changes=changes).complete(ASK)
    assert tried(done) == [CHEAP, STRONG] and done.model == STRONG and done.decision.model == CHEAP


def test_a_timeout_is_not_retried_while_another_model_is_left(make: Callable[..., Cascade]) -> None:
    late = ProviderTimeoutError("late", model=CHEAP)
    assert tried(make({CHEAP: late}).complete(ASK)) == [CHEAP, STRONG]
    alone = dataclasses.replace(ASK, allow=[CHEAP])
    assert tried(make({CHEAP: [late, "four"]}).complete(alone)) == [CHEAP, CHEAP]


def test_a_provider_that_asks_for_a_long_pause_is_left(make: Callable[..., Cascade]) -> None:
    busy = RateLimitedError("busy", model=CHEAP, retry_after_s=20.0)
    assert tried(make({CHEAP: busy}).complete(ASK)) == [CHEAP, STRONG]


def test_a_short_pause_that_a_provider_asks_for_is_kept(router_path: Path) -> None:
    pauses: list[float] = []
    client = answers({CHEAP: [RateLimitedError("busy", model=CHEAP, retry_after_s=1.5), "four"]})
    Cascade(acting_router(router_path), client=client, sleep=pauses.append).complete(ASK)
    assert len(pauses) == 1 and pauses[0] >= 1.5


def test_back_off_grows_and_is_jittered(router_path: Path) -> None:
    def pauses(seed: int) -> list[float]:
        found: list[float] = []
        router = acting_router(router_path, fallback=Fallback(max_retries=5))
        failing = answers({}, ProviderUnavailableError("down", model=CHEAP))
        with pytest.raises(AttemptsFailedError):
            Cascade(LiveRouter(router, seed=seed), client=failing, sleep=found.append).complete(
                dataclasses.replace(ASK, allow=[CHEAP])
            )
        return found

    assert len(pauses(0)) == 5 and all(0 <= pause <= 0.25 * 2**i for i, pause in enumerate(pauses(0)))
    assert pauses(0) == pauses(0) != pauses(1)


def test_a_context_error_goes_to_a_larger_window_only(make: Callable[..., Cascade]) -> None:
    windows = {"other/mini": 8_000, "acme/medium": 8_000, "acme/large": 100_000, "other/max": 100_000}
    changes = {name: {"max_input_tokens": size} for name, size in windows.items()}
    cascade = make({CHEAP: ContextTooLongError("long", model=CHEAP)}, changes=changes)
    done = cascade.complete(RouteRequest("What is 2 + 2?", min_quality=0.01, deny=["acme/small"]))
    assert done.attempts[0].model == CHEAP and done.model in ("acme/large", "other/max")
    assert len(done.attempts) == 2


def test_a_context_error_of_the_largest_window_is_final(make: Callable[..., Cascade]) -> None:
    changes = {name: {"max_input_tokens": 8_000} for name in ("other/mini", "other/max")}
    with pytest.raises(AttemptsFailedError) as caught:
        make({CHEAP: ContextTooLongError("long", model=CHEAP)}, changes=changes).complete(ASK)
    assert [attempt.model for attempt in caught.value.attempts] == [CHEAP]


def test_a_bad_key_is_not_tried_again_on_models_behind_it(make: Callable[..., Cascade]) -> None:
    cascade = make({}, changes={"acme/large": {"api_key_env": "ANOTHER_KEY"}})
    cascade.client._answer = lambda call: (  # type: ignore[attr-defined]
        "fine" if call.spec.name == "acme/large" else CredentialsError("no", model=call.spec.name)
    )
    request = RouteRequest("What is 2 + 2?", min_quality=0.01, deny=["acme/small"])
    assert tried(cascade.complete(request)) == [CHEAP, "acme/large"]


def test_a_pinned_model_has_no_substitute(make: Callable[..., Cascade]) -> None:
    with pytest.raises(AttemptsFailedError) as caught:
        make({CHEAP: ContentRefusedError("no", model=CHEAP)}).complete(RouteRequest("hi", pin=CHEAP))
    assert [attempt.model for attempt in caught.value.attempts] == [CHEAP] and caught.value.decision.model == CHEAP


def test_the_error_of_errors_carries_every_attempt_and_no_prompt(make: Callable[..., Cascade], log: OutcomeLog) -> None:
    down = ProviderUnavailableError("down", model="any", status=503)
    cascade = make({}, log=log)
    cascade.client._answer = lambda call: down  # type: ignore[attr-defined]
    with pytest.raises(AttemptsFailedError) as caught:
        cascade.complete(dataclasses.replace(ASK, messages="my dearest secret"))
    assert len(caught.value.attempts) == 6 and {a.model for a in caught.value.attempts} == {CHEAP, STRONG}
    assert "secret" not in str(caught.value)
    log.flush()
    (logged,) = log.decisions()
    assert len(logged.attempts) == 6


# -- health


def test_a_model_whose_breaker_is_open_is_passed_over_and_comes_back(router_path: Path) -> None:
    clock = [1_000_000.0]
    live = LiveRouter(acting_router(router_path, fallback=Fallback(max_retries=0)), clock=lambda: clock[0])
    down = True

    def answer(call: Call) -> str | ProviderError:
        return ProviderUnavailableError("down", model=CHEAP) if down and call.spec.name == CHEAP else "fine"

    client = FakeClient(answer)
    cascade = Cascade(live, client=client, sleep=lambda s: None)
    for _ in range(200):
        clock[0] += 0.1
        cascade.complete(ASK)
    calls = [call.spec.name for call in client.calls]
    assert calls.count(CHEAP) <= 25
    down = False
    clock[0] += 31.0
    client.calls.clear()
    for _ in range(5):
        cascade.complete(ASK)
    assert [call.spec.name for call in client.calls] == [CHEAP] * 5


def test_where_every_breaker_is_open_models_are_called_all_the_same(make: Callable[..., Cascade]) -> None:
    cascade = make({}, breaker=Breaker(min_requests=2), fallback=Fallback(max_retries=0))
    cascade.client._answer = lambda call: ProviderUnavailableError("down", model=call.spec.name)  # type: ignore[attr-defined]
    for _ in range(10):
        with pytest.raises(AttemptsFailedError):
            cascade.complete(ASK)
    cascade.client._answer = lambda call: "back"  # type: ignore[attr-defined]
    assert cascade.complete(ASK).text == "back"


def test_low_headroom_moves_requests_to_another_likely_model(make: Callable[..., Cascade]) -> None:
    low = {
        "x-ratelimit-limit-requests": "100",
        "x-ratelimit-remaining-requests": "5",
        "x-ratelimit-reset-requests": "60s",
    }
    cascade = make({CHEAP: Reply("four", Usage(1, 1), headers=low)})
    request = RouteRequest("What is 2 + 2?", min_quality=0.01, deny=["acme/small"])
    assert cascade.complete(request).model == CHEAP
    assert cascade.complete(request).model != CHEAP
    alone = dataclasses.replace(request, allow=[CHEAP], deny=[])
    assert cascade.complete(alone).model == CHEAP


@pytest.mark.parametrize("on_exceeded", ["degrade", "refuse"])
def test_a_model_that_is_only_spared_is_called_where_a_cap_forbids_the_others(
    make: Callable[..., Cascade], on_exceeded: str
) -> None:
    low = {"x-ratelimit-limit-requests": "100", "x-ratelimit-remaining-requests": "5"}
    cascade = make(
        {CHEAP: Reply("four", Usage(0, 0), headers=low)}, budgets=Budgets(per_day_usd=0.001, on_exceeded=on_exceeded)
    )
    assert [cascade.complete(ASK).model for _ in range(2)] == [CHEAP, CHEAP]


def test_a_model_whose_breaker_is_open_is_called_where_a_cap_forbids_the_others(make: Callable[..., Cascade]) -> None:
    pool = {"breaker": Breaker(min_requests=2), "fallback": Fallback(max_retries=0)}
    cascade = make({}, budgets=Budgets(per_day_usd=0.001), **pool)
    cascade.client._answer = lambda call: ProviderUnavailableError("down", model=call.spec.name)  # type: ignore[attr-defined]
    for _ in range(3):
        with pytest.raises(AttemptsFailedError):
            cascade.complete(ASK)
    cascade.client._answer = lambda call: "back"  # type: ignore[attr-defined]
    assert cascade.complete(ASK).model == CHEAP


# -- money


@pytest.mark.parametrize("on_exceeded", ["degrade", "refuse"])
def test_a_cap_that_others_have_used_up_since_the_decision_degrades_or_refuses(
    make: Callable[..., Cascade], on_exceeded: str
) -> None:
    dear = dataclasses.replace(ASK, min_quality=1.0)
    cascade = make({}, budgets=Budgets(per_day_usd=0.01, on_exceeded=on_exceeded))
    decide = cascade.live.decide

    def decide_slowly(reading: Any) -> Any:
        decision = decide(reading)
        cascade.live.ledger.reserve((), 0.009)
        return decision

    cascade.live.decide = decide_slowly  # type: ignore[method-assign]
    if on_exceeded == "refuse":
        with pytest.raises(BudgetExceededError):
            cascade.complete(dear)
    else:
        done = cascade.complete(dear)
        assert (done.decision.model, done.model, tried(done)) == (STRONG, CHEAP, [CHEAP])


def test_a_reservation_knows_of_the_prompt_cache_as_the_decision_does(make: Callable[..., Cascade]) -> None:
    request = RouteRequest("word " * 40_000, pin=STRONG, current_model=STRONG, cached_tokens=50_000)
    free = make({})
    decision = free.live.decide(free.live.read(request))
    assert free.live.expected_cost(free.live.read(request), STRONG) == decision.expected_cost_usd
    cascade = make({}, budgets=Budgets(per_day_usd=1.5 * decision.expected_cost_usd))
    assert cascade.complete(request).model == STRONG


def test_a_daily_cap_degrades_to_what_is_left_of_it_then_refuses(make: Callable[..., Cascade]) -> None:
    dear = RouteRequest("What is 2 + 2?", allow=[CHEAP, STRONG], min_quality=1.0)
    free = make({}, budgets=Budgets())
    assert free.complete(dear).model == STRONG
    cost = {c.model: c.expected_cost_usd for c in free.live.decide(free.live.read(dear)).candidates}
    cap = (cost[CHEAP] + cost[STRONG]) / 2
    cascade = make({CHEAP: Reply("x", Usage(0, 0))}, budgets=Budgets(per_day_usd=cap))
    done = cascade.complete(dear)
    assert done.model == CHEAP and done.decision.degraded
    cascade = make({}, budgets=Budgets(per_day_usd=cost[CHEAP] / 2))
    with pytest.raises(BudgetExceededError, match="day"):
        cascade.complete(dear)
    assert not cascade.client.calls  # type: ignore[attr-defined]


def test_a_cap_may_refuse_instead_of_degrading(make: Callable[..., Cascade]) -> None:
    dear = RouteRequest("What is 2 + 2?", allow=[CHEAP, STRONG], min_quality=1.0, tags=["team"])
    free = make({})
    cost = {c.model: c.expected_cost_usd for c in free.live.decide(free.live.read(dear)).candidates}
    cap = (cost[CHEAP] + cost[STRONG]) / 2
    cascade = make({}, budgets=Budgets(per_tag_day_usd={"team": cap}, on_exceeded="refuse"))
    with pytest.raises(BudgetExceededError, match="team"):
        cascade.complete(dear)
    assert cascade.complete(dataclasses.replace(dear, tags=[])).model == STRONG


def test_what_was_really_spent_counts_against_the_cap(make: Callable[..., Cascade]) -> None:
    cascade = make({CHEAP: Reply("x", Usage(10_000_000, 0))}, budgets=Budgets(per_day_usd=1.5))
    assert cascade.complete(ASK).cost_usd == pytest.approx(1.0)
    cap = cascade.live.ledger.tightest(())
    assert cap is not None and cap.spent_usd == pytest.approx(1.0)


def test_a_new_process_knows_from_the_log_what_was_spent_today(make: Callable[..., Cascade], log: OutcomeLog) -> None:
    cascade = make({CHEAP: Reply("x", Usage(10_000_000, 0))}, log=log, budgets=Budgets(per_day_usd=1.5))
    receipt = cascade.complete(ASK).receipt
    assert receipt is not None
    receipt.wait(10)
    cap = make({}, log=log, budgets=Budgets(per_day_usd=1.5)).live.ledger.tightest(())
    assert cap is not None and cap.spent_usd == pytest.approx(1.0)


# -- sessions


def test_a_conversation_stays_where_its_prompt_is_cached_unless_leaving_pays(make: Callable[..., Cascade]) -> None:
    cascade = make({"acme/large": Reply("x", Usage(50_000, 10))}, changes={"acme/large": {"call_as": "openai/large"}})
    long = "word " * 40_000
    first = RouteRequest(long, session_id="s", pin="acme/large")
    assert cascade.complete(first).model == "acme/large"
    held = cascade.live.sessions.recall("s")
    assert held is not None and (held.model, held.cached_tokens) == ("acme/large", 50_000)
    reading = cascade.live.read(RouteRequest(long, session_id="s"))
    assert (reading.request.current_model, reading.request.cached_tokens) == ("acme/large", 50_000)
    cost = {c.model: c.expected_cost_usd for c in cascade.live.decide(reading).candidates}
    alone = {
        c.model: c.expected_cost_usd for c in cascade.live.decide(cascade.live.read(RouteRequest(long))).candidates
    }
    assert cost["acme/large"] < alone["acme/large"]
    assert {m: c for m, c in cost.items() if m != "acme/large"} == {m: c for m, c in alone.items() if m != "acme/large"}


def test_a_switch_is_bounded_by_what_the_prompt_costs_again(make: Callable[..., Cascade]) -> None:
    request = RouteRequest(
        "word " * 40_000, current_model="acme/large", cached_tokens=50_000, max_switch_usd=0.02, min_quality=0.01
    )
    decision = make({}).live.decide(make({}).live.read(request))
    out = {c.model: c.excluded_by for c in decision.candidates}
    # 50,000 tokens read again cost .005 at .1 USD per million, .01 at .2, .05 at 1 and .25 at 5
    assert out["other/mini"] is None and out["acme/small"] is None and out["acme/large"] is None
    assert "cached tokens again" in str(out["acme/medium"]) and "cached tokens again" in str(out["other/max"])


# -- streams


def test_a_stream_gives_chunks_and_then_the_completion(make: Callable[..., Cascade], log: OutcomeLog) -> None:
    stream = make({CHEAP: "two words"}, log=log).complete(ASK, stream=True)
    assert stream.model == CHEAP and stream.completion is None
    assert "".join(stream) == "two words"
    assert stream.completion.text == "two words" and stream.completion.cost_usd > 0
    log.flush()
    assert [len(logged.attempts) for logged in log.decisions()] == [1]


def test_a_stream_that_cannot_begin_falls_back(make: Callable[..., Cascade]) -> None:
    stream = make({CHEAP: ContentRefusedError("no", model=CHEAP), STRONG: "from the strong"}).complete(ASK, stream=True)
    assert stream.model == STRONG and "".join(stream) == "from the strong"
    assert [a.model for a in stream.completion.attempts] == [CHEAP, STRONG]


def test_a_stream_left_early_is_booked(make: Callable[..., Cascade], log: OutcomeLog) -> None:
    with make({CHEAP: "one two three"}, log=log).complete(ASK, stream=True) as stream:
        assert next(iter(stream)) == "one "
    assert stream.completion.text.startswith("one")
    log.flush()
    assert len(list(log.decisions())) == 1


def test_a_checked_stream_comes_from_the_stage_that_was_accepted(make: Callable[..., Cascade]) -> None:
    request = dataclasses.replace(ASK, verifier=MinimumLength(10))
    stream = make({CHEAP: "short", STRONG: "a longer answer"}).complete(request, stream=True)
    assert "".join(stream) == "a longer answer" and stream.model == STRONG and stream.completion.accepted


def test_iterating_a_stream_again_does_not_repeat_its_beginning(make: Callable[..., Cascade]) -> None:
    stream = make({CHEAP: "one two three"}).complete(ASK, stream=True)
    assert "".join(stream) == "one two three" and list(stream) == []

    async def twice() -> list[list[Any]]:
        stream = await make({CHEAP: "one two"}).acomplete(ASK, stream=True)
        return [[chunk async for chunk in stream] for _ in range(2)]

    assert asyncio.run(twice()) == [["one ", "two"], []]


def test_a_stream_whose_connection_cannot_be_closed_is_booked(make: Callable[..., Cascade]) -> None:
    class Rest:
        def close(self) -> None:
            raise BrokenPipeError

    cascade = make({CHEAP: "one two"}, budgets=Budgets(per_day_usd=1.0))
    stream = cascade.complete(ASK, stream=True)
    stream._given = stream._given._replace(rest=Rest())
    with pytest.raises(BrokenPipeError):
        stream.close()
    assert [attempt.model for attempt in stream.completion.attempts] == [CHEAP]


def test_a_checked_stream_is_used_like_any_other(make: Callable[..., Cascade]) -> None:
    request = dataclasses.replace(ASK, verifier=MinimumLength(3))
    with make({CHEAP: "one two"}).complete(request, stream=True) as stream:
        assert "".join(stream) == "one two"

    async def read() -> str:
        async with await make({CHEAP: "one two"}).acomplete(request, stream=True) as stream:
            return "".join([chunk async for chunk in stream])

    assert asyncio.run(read()) == "one two"


def test_a_stream_that_is_only_planned_with_a_check_is_not_held_back(make: Callable[..., Cascade]) -> None:
    stream = make({CHEAP: "one two"}).complete(dataclasses.replace(ASK, verifier=VerifierSpec()), stream=True)
    assert stream.completion is None and "".join(stream) == "one two" and stream.completion.accepted is None


def test_an_empty_stream_is_no_answer_to_check(make: Callable[..., Cascade]) -> None:
    cascade = make({CHEAP: "", STRONG: "one two"})
    full = cascade.client.stream

    def stream(call: Call) -> Iterator[Any]:
        return iter(()) if call.spec.name == CHEAP else full(call)

    cascade.client.stream = stream  # type: ignore[method-assign]
    done = cascade.complete(dataclasses.replace(ASK, verifier=MinimumLength(3)), stream=True).completion
    assert [type(attempt.error) for attempt in done.attempts] == [ProviderUnavailableError] * 3 + [type(None)]


def test_a_stream_tells_the_rate_limit_and_whether_it_was_cached(make: Callable[..., Cascade]) -> None:
    low = {"x-ratelimit-limit-requests": "100", "x-ratelimit-remaining-requests": "5"}
    for cache_hit in (False, True):
        cascade = make({})
        cascade.client.stream = lambda call, hit=cache_hit: (  # type: ignore[method-assign, misc]
            Chunk(word, word, Usage(1_000, 10), headers=low, cache_hit=hit) for word in ("one ", "two")
        )
        stream = cascade.complete(ASK, stream=True)
        assert "".join(stream) == "one two" and stream.completion.attempts[0].cache_hit is cache_hit
        assert (stream.completion.cost_usd == 0.0) is cache_hit
        headroom = cascade.live.health.status()[CHEAP].headroom
        assert headroom is None if cache_hit else headroom == pytest.approx(0.05)


@pytest.mark.parametrize("params", [{"model": "other/max"}, {"messages": [{"role": "user", "content": "hi"}]}])
def test_parameters_do_not_replace_what_was_decided(make: Callable[..., Cascade], params: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match=next(iter(params))):
        make({}).complete(ASK, **params)


def test_guards_see_the_output_limit_that_is_sent(make: Callable[..., Cascade]) -> None:
    cascade = make({}, changes={CHEAP: {"max_output_tokens": 1_000}})
    done = cascade.complete(dataclasses.replace(ASK, max_output_tokens=10), max_tokens=5_000)
    assert done.model == STRONG and cascade.client.calls[-1].params["max_tokens"] == 5_000  # type: ignore[attr-defined]


# -- both worlds


def test_asyncio_and_blocking_calls_do_the_same(make: Callable[..., Cascade]) -> None:
    async def arun() -> tuple[str, list[str], str]:
        request = dataclasses.replace(ASK, verifier=MinimumLength(10))
        done = await make({CHEAP: "short", STRONG: "a longer answer"}).acomplete(request)
        stream = await make({CHEAP: ContentRefusedError("no", model=CHEAP), STRONG: "a b"}).acomplete(ASK, stream=True)
        return done.text, tried(done), "".join([chunk async for chunk in stream])

    assert asyncio.run(arun()) == ("a longer answer", [CHEAP, STRONG], "a b")


def test_a_cancelled_call_frees_what_it_held(make: Callable[..., Cascade], log: OutcomeLog) -> None:
    cascade = make({}, log=log, budgets=Budgets(per_day_usd=10.0))

    async def never(call: Call) -> Reply:
        await asyncio.sleep(60)
        raise AssertionError

    cascade.client.acomplete = never  # type: ignore[method-assign]

    async def cancel() -> None:
        task = asyncio.create_task(cascade.acomplete(ASK))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    cap = cascade.live.ledger.tightest(())
    assert cap is not None and cap.spent_usd == 0.0
    log.flush()
    assert [logged.attempts for logged in log.decisions()] == [()]


ERRORS = [RateLimitedError, ProviderTimeoutError, ProviderUnavailableError, ContextTooLongError, ContentRefusedError,
          CredentialsError, ModelGoneError, CallRefusedError, ProviderError]  # fmt: skip


@given(st.lists(st.sampled_from([*ERRORS, None]), max_size=12), st.booleans())
def test_whatever_fails_there_is_an_answer_or_an_error_with_every_attempt(
    router_path: Path, outcomes: list[type[ProviderError] | None], checked: bool
) -> None:
    script = list(outcomes)
    calls: list[str] = []

    def answer(call: Call) -> str | ProviderError:
        calls.append(call.spec.name)
        error = script.pop(0) if script else None
        return "fine" if error is None else error("x", model=call.spec.name)

    cascade = Cascade(CACHED_ROUTER(router_path), client=FakeClient(answer), sleep=lambda s: None)
    request = RouteRequest("What is 2 + 2?", min_quality=0.01, verifier=MinimumLength(100) if checked else None)
    try:
        attempts = cascade.complete(request).attempts
    except AttemptsFailedError as failed:
        attempts = failed.attempts
    assert [attempt.model for attempt in attempts] == calls


_ROUTERS: dict[Path, Router] = {}


def CACHED_ROUTER(path: Path) -> Router:
    return _ROUTERS.setdefault(path, acting_router(path))


def test_a_request_that_no_model_can_take_is_refused_before_any_call(make: Callable[..., Cascade]) -> None:
    cascade = make({})
    with pytest.raises(NoEligibleModelError):
        cascade.complete(RouteRequest("look", require=["video"]))
    assert not cascade.client.calls  # type: ignore[attr-defined]


# -- decisions about cases at the edge


def test_under_a_pin_no_other_model_answers_whatever_the_verifier_says(make: Callable[..., Cascade]) -> None:
    request = RouteRequest("What is 2 + 2?", pin=CHEAP, verifier=MinimumLength(10))
    done = make({CHEAP: "short"}).complete(request)
    assert (done.decision.plan, tried(done), done.accepted) == ((CHEAP,), [CHEAP], False)


def test_a_call_of_a_tool_is_not_checked_as_if_it_were_the_answer(make: Callable[..., Cascade]) -> None:
    step = Reply("", Usage(10, 10), "tool_calls")
    done = make({CHEAP: step}).complete(dataclasses.replace(ASK, verifier=MinimumLength(10)))
    assert tried(done) == [CHEAP] and done.accepted is None


def test_the_budget_of_a_request_holds_for_the_whole_plan(make: Callable[..., Cascade]) -> None:
    cascade = make({CHEAP: Reply("short", Usage(1_000, 0)), STRONG: "a longer answer"})
    checked = dataclasses.replace(ASK, verifier=MinimumLength(10))
    reading = cascade.live.read(checked)
    cheap, strong = (cascade.live.expected_cost(reading, model) for model in (CHEAP, STRONG))
    assert tried(cascade.complete(dataclasses.replace(checked, budget_usd=cheap + strong))) == [CHEAP, STRONG]
    # no plan of both may be made, and the last resort alone is within the budget
    assert tried(cascade.complete(dataclasses.replace(checked, budget_usd=cheap + strong - 1e-9))) == [STRONG]


def test_a_stage_is_left_out_if_the_budget_was_spent_before_it(make: Callable[..., Cascade]) -> None:
    cascade = make({CHEAP: Reply("short", Usage(1_000_000, 0)), STRONG: "a longer answer"})  # dearer than expected
    checked = dataclasses.replace(ASK, verifier=MinimumLength(10))
    reading = cascade.live.read(checked)
    budget = sum(cascade.live.expected_cost(reading, model) for model in (CHEAP, STRONG))
    done = cascade.complete(dataclasses.replace(checked, budget_usd=budget))
    assert (tried(done), done.text, done.accepted) == ([CHEAP], "short", False)


def test_a_plan_may_call_a_model_twice(make: Callable[..., Cascade]) -> None:
    cascade = make({CHEAP: ["short", "a longer answer"], STRONG: "never asked"})
    checked = dataclasses.replace(ASK, verifier=MinimumLength(10))
    decision = dataclasses.replace(cascade.live.decide(cascade.live.read(checked)), plan=(CHEAP, CHEAP, STRONG))
    cascade.live.decide = lambda reading: decision  # type: ignore[method-assign]
    done = cascade.complete(checked)
    assert (tried(done), done.text, done.accepted) == ([CHEAP, CHEAP], "a longer answer", True)


def test_an_answer_without_usage_is_not_free(make: Callable[..., Cascade]) -> None:
    done = make({CHEAP: Reply("four " * 100, Usage())}).complete(ASK)
    assert done.attempts[0].usage.output_tokens == 125 and done.attempts[0].usage.input_tokens > 0
    assert done.cost_usd > 125 * 0.4 / 1e6


def test_a_log_that_was_closed_loses_no_answer(
    make: Callable[..., Cascade], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = OutcomeLog(f"sqlite:///{tmp_path / 'closed.db'}")
    cascade = make({CHEAP: "four"}, log=log)
    log.close()
    done = cascade.complete(ASK)
    assert done.text == "four" and done.receipt is None and "not in the outcome log" in caplog.text


def test_how_slowly_a_stream_is_read_says_nothing_of_the_models_latency(
    make: Callable[..., Cascade], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr("router_ml.stream.time.perf_counter", lambda: clock[0])
    stream = make({CHEAP: "one two three"}).complete(ASK, stream=True)
    for _ in stream:
        clock[0] += 60.0  # the reader's own time
    assert stream.completion.attempts[0].latency_s == 0.0
