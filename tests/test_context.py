"""Long prompts: the hook shortens what the wanted model is not reliable for; without it the guards move the request."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from acting import acting_router
from hypothesis import given
from hypothesis import strategies as st

from router_ml.attempt import AttemptKind, Usage
from router_ml.cascade import Cascade
from router_ml.completion import Call, FakeClient, Reply
from router_ml.context import SummariseMiddle, length_limit, tokens_of
from router_ml.errors import ProviderError, ProviderUnavailableError, RouterError
from router_ml.request import RouteRequest

CHEAP, STRONG, SCRIBE = "other/mini", "other/max", "acme/small"
RELIABLE = 2_000
LIMITS = {CHEAP: {"reliable_input_tokens": RELIABLE, "max_input_tokens": 50_000}}


def conversation(turns: int, words: int) -> list[dict[str, Any]]:
    roles = ("user", "assistant")
    said = [{"role": roles[i % 2], "content": f"turn {i}: " + "word " * words} for i in range(turns)]
    return [{"role": "system", "content": "Be brief."}, *said, {"role": "user", "content": "What is 2 + 2?"}]


LONG = conversation(20, 500)


def request(messages: Any = LONG) -> RouteRequest:
    return RouteRequest(messages, allow=[CHEAP, STRONG], min_quality=0.01)


def cascade(router_path: Path, client: FakeClient, **hook: Any) -> Cascade:
    return Cascade(acting_router(router_path, changes=LIMITS), client=client, **hook)


def answer(call: Call) -> str | Reply | ProviderError:
    return Reply("they talked", Usage(10_000, 100)) if call.spec.name == SCRIBE else "four"


def test_without_a_hook_a_long_prompt_goes_to_a_model_that_is_reliable_for_it(router_path: Path) -> None:
    done = cascade(router_path, FakeClient(answer)).complete(request())
    assert done.model == STRONG
    assert "reliable" in next(str(c.excluded_by) for c in done.decision.candidates if c.model == CHEAP)


def test_with_a_hook_it_is_shortened_for_the_model_that_a_short_one_would_go_to(router_path: Path) -> None:
    client = FakeClient(answer)
    done = cascade(router_path, client, compress=SummariseMiddle(SCRIBE)).complete(request())
    assert done.model == CHEAP
    first, second = done.attempts
    assert (first.kind, first.model, second.kind) == (AttemptKind.COMPRESSION, SCRIBE, AttemptKind.ANSWER)
    assert first.cost_usd == pytest.approx((10_000 * 0.2 + 100 * 0.8) / 1e6)
    assert done.cost_usd == pytest.approx(first.cost_usd + second.cost_usd)
    sent = list(client.calls[-1].messages)
    assert sent[0] == LONG[0] and "they talked" in sent[1]["content"] and sent[2:] == LONG[-3:]
    assert tokens_of(sent) <= RELIABLE


def test_six_turns_are_kept_where_they_fit() -> None:
    kept = SummariseMiddle(SCRIBE)(LONG, 10_000, lambda model, sent: ("short", 0.0))
    assert kept[2:] == LONG[-6:]


def test_a_short_prompt_is_left_alone(router_path: Path) -> None:
    client = FakeClient(answer)
    cascade(router_path, client, compress=SummariseMiddle(SCRIBE)).complete(request("What is 2 + 2?"))
    assert [call.spec.name for call in client.calls] == [CHEAP]


@pytest.mark.parametrize("broken", [ProviderUnavailableError("down", model=SCRIBE), "  "])
def test_a_hook_that_fails_sends_the_whole_prompt_to_a_model_that_holds_it(router_path: Path, broken: Any) -> None:
    client = FakeClient(lambda call: broken if call.spec.name == SCRIBE else "four")
    done = cascade(router_path, client, compress=SummariseMiddle(SCRIBE)).complete(request())
    assert done.model == STRONG and done.attempts[0].error is not None
    assert list(client.calls[-1].messages) == LONG


@pytest.mark.parametrize("given", [None, [], [{"role": "nobody", "content": "hi"}]])
def test_a_hook_that_gives_no_messages_sends_the_whole_prompt(router_path: Path, given: Any) -> None:
    class Broken:
        model = SCRIBE

        def __call__(self, messages: Any, limit_tokens: int, ask: Any) -> Any:
            return given

    client = FakeClient(answer)
    done = cascade(router_path, client, compress=Broken()).complete(request())
    assert done.model == STRONG and done.attempts[0].error is not None
    assert list(client.calls[-1].messages) == LONG


def test_a_prompt_of_which_nothing_can_be_left_out_is_no_attempt(router_path: Path) -> None:
    client = FakeClient(answer)
    one = [{"role": "user", "content": "word " * 9_000}]
    done = cascade(router_path, client, compress=SummariseMiddle(SCRIBE)).complete(request(one))
    assert [attempt.model for attempt in done.attempts] == [STRONG] == [call.spec.name for call in client.calls]


def test_the_limit_is_that_of_the_model_wanted(router_path: Path) -> None:
    router = acting_router(router_path, changes=LIMITS)
    assert length_limit(router, router.read(request())) == RELIABLE
    assert length_limit(router, router.read(RouteRequest(LONG, pin=STRONG))) is None
    assert length_limit(router, router.read(request("short"))) is None


def test_an_answer_of_a_tool_is_not_parted_from_its_call() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
    messages = [*conversation(4, 5), call, *[{"role": "tool", "content": "x"}] * 3]
    kept = SummariseMiddle(SCRIBE, keep_last=2)(messages, 1_000, lambda model, sent: ("short", 0.0))
    assert kept[-4:] == [call, *[{"role": "tool", "content": "x"}] * 3] and "short" in kept[1]["content"]


def test_the_scribe_is_given_both_ends_of_a_very_long_middle() -> None:
    given: list[Any] = []

    def ask(model: str, sent: list[dict[str, Any]]) -> tuple[str, float]:
        given.extend(sent)
        return "short", 0.0

    SummariseMiddle(SCRIBE, max_chars=200)(conversation(50, 50), 10, ask)
    assert len(given[1]["content"]) < 250 and "turn 0" in given[1]["content"] and "[...]" in given[1]["content"]


def test_an_empty_summary_is_an_error() -> None:
    with pytest.raises(RouterError, match="empty summary"):
        SummariseMiddle(SCRIBE)(LONG, 10, lambda model, sent: (" ", 0.0))


@given(st.lists(st.sampled_from(["system", "user", "assistant", "tool"]), max_size=30), st.integers(0, 10))
def test_what_is_kept_is_a_suffix_and_every_system_message(roles: list[str], keep: int) -> None:
    messages = [{"role": role, "content": f"{i}"} for i, role in enumerate(roles)]
    kept = SummariseMiddle(SCRIBE, keep_last=keep)(messages, 1_000, lambda model, sent: ("short", 0.0))
    turns = [m for m in messages if m["role"] != "system"]
    assert [m for m in kept if m["role"] == "system"] == [m for m in messages if m["role"] == "system"]
    rest = [m for m in kept if m["role"] != "system" and "Summary of" not in m["content"]]
    assert rest == turns[len(turns) - len(rest) :] and len(rest) >= min(keep, len(turns))
