"""Reading requests: every form a caller may hold, and one clear error for everything else."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router_ml.errors import RequestError, RouterError
from router_ml.request import (
    AUDIO_TOKENS,
    IMAGE_TOKENS,
    PDF_TOKENS,
    VIDEO_TOKENS,
    Candidate,
    Evidence,
    Reason,
    ReasonCode,
    RouteDecision,
    RouteRequest,
    Trace,
    VerifierSpec,
    read_trace,
)


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def text_part(text: Any) -> dict[str, Any]:
    return {"type": "text", "text": text}


def trace_of(value: Any, **limits: Any) -> Trace:
    return read_trace(RouteRequest(value, **limits))


def nested_list(depth: int) -> list[Any]:
    outer: list[Any] = []
    inner = outer
    for _ in range(depth):
        inner.append([])
        inner = inner[0]
    return outer


def nested_object(depth: int, key: str = "properties") -> dict[str, Any]:
    outer: dict[str, Any] = {}
    inner = outer
    for _ in range(depth):
        inner[key] = {}
        inner = inner[key]
    return outer


# --- forms that are read


def test_a_string_is_one_user_message() -> None:
    as_text, as_messages = trace_of("Add 2 and 2"), trace_of([user("Add 2 and 2")])
    assert as_text.user_text == as_text.last_user_text == as_messages.user_text == as_messages.last_user_text
    assert as_text.user_turns == as_messages.user_turns == 1
    assert as_text.needs == as_messages.needs == frozenset()


@pytest.mark.parametrize(
    "value",
    [
        "Hi",
        [user("Hi")],
        (user("Hi"),),
        {"messages": "Hi"},
        {"prompt": "Hi"},
        {"messages": [user("Hi")]},
        RouteRequest("Hi"),
    ],
)
def test_every_form_is_read(value: Any) -> None:
    assert read_trace(RouteRequest.of(value)).user_text == "Hi"


def test_a_request_passes_through_unchanged() -> None:
    request = RouteRequest("Hi", min_quality=0.9)
    assert RouteRequest.of(request) is request


def test_a_mapping_sets_the_fields_and_keeps_its_own() -> None:
    value = {"prompt": "Hi", "budget_usd": 0.5, "verifier": {"true_accept": 0.9}, "require": ["vision"]}
    kept = json.dumps(value)
    request = RouteRequest.of(value)
    assert request.budget_usd == 0.5
    assert request.verifier == VerifierSpec(true_accept=0.9)
    assert read_trace(request).needs == {"vision"}
    assert json.dumps(value) == kept


def test_user_turns_are_joined_and_the_last_is_known() -> None:
    trace = trace_of(
        [user("One"), {"role": "assistant", "content": "Yes?"}, user([text_part("Two"), text_part("Three")])]
    )
    assert trace.user_text == "One\n\nTwo\nThree"
    assert trace.last_user_text == "Two\nThree"
    assert (trace.user_turns, trace.assistant_turns) == (2, 1)


def test_system_prompt_and_tools_stay_out_of_the_users_text() -> None:
    tool = {"type": "function", "function": {"name": "find_ship", "parameters": {"type": "object"}}}
    messages = [
        {"role": "system", "content": "Secret policy"},
        {"role": "developer", "content": [text_part("Secret style")]},
        user("Hello"),
        {"role": "assistant", "content": "Secret reply", "tool_calls": [{"function": {"name": "find_ship"}}]},
        {"role": "tool", "content": "Secret result"},
        {"role": "function", "content": "Secret result"},
    ]
    trace = trace_of(messages, tools=[tool])
    assert trace.user_text == trace.last_user_text == "Hello"
    assert (trace.user_turns, trace.tools_offered, trace.tool_calls, trace.tool_results) == (1, 1, 1, 2)


@pytest.mark.parametrize("role", ["system", "developer"])
def test_a_long_system_prompt_changes_only_the_size(role: str) -> None:
    plain = trace_of([user("What is 2+2?")])
    dressed = trace_of([{"role": role, "content": "Be kind. Error: failed. " * 1_000}, user("What is 2+2?")])
    assert dressed.input_tokens > plain.input_tokens + 5_000
    assert dressed._replace(input_tokens=0) == plain._replace(input_tokens=0)


def test_tool_schemas_count_for_the_size() -> None:
    small = trace_of("Hi", tools=[{"name": "f"}])
    large = trace_of("Hi", tools=[{"name": "f", "description": "x" * 4_000}])
    assert large.input_tokens - small.input_tokens >= 1_000
    assert large.needs == {"tools"}


@pytest.mark.parametrize(
    ("part", "field", "tokens", "need"),
    [
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}, "images", IMAGE_TOKENS, "vision"),
        ({"type": "input_image"}, "images", IMAGE_TOKENS, "vision"),
        ({"type": "image", "source": {"type": "base64"}}, "images", IMAGE_TOKENS, "vision"),
        ({"type": "file", "file": {"file_id": "f"}}, "pdfs", PDF_TOKENS, "pdf"),
        ({"type": "input_file"}, "pdfs", PDF_TOKENS, "pdf"),
        ({"type": "document", "source": {"type": "url"}}, "pdfs", PDF_TOKENS, "pdf"),
        ({"type": "video_url"}, "videos", VIDEO_TOKENS, "video"),
        ({"type": "input_audio"}, "audios", AUDIO_TOKENS, "audio"),
    ],
)
def test_openai_and_anthropic_attachments_are_counted(part: dict[str, Any], field: str, tokens: int, need: str) -> None:
    alone = trace_of([user([text_part("See this")])])
    trace = trace_of([user([text_part("See this"), part])])
    assert getattr(trace, field) == 1
    assert trace.input_tokens == alone.input_tokens + tokens
    assert trace.needs == {need}
    assert trace.user_text == "See this"


def test_an_attachment_alone_is_a_request() -> None:
    trace = trace_of([user([{"type": "image_url"}])])
    assert (trace.user_text, trace.user_turns, trace.images) == ("", 1, 1)


def test_openai_tool_calls_and_failures_are_counted() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "run", "arguments": "{}"}}
    trace = trace_of(
        [
            user("Run it"),
            {"role": "assistant", "content": None, "tool_calls": [call, call, call]},
            {"role": "tool", "content": "Traceback (most recent call last)"},
            {"role": "tool", "content": "bash: foo: command not found"},
            {"role": "tool", "content": "3 passed"},
        ]
    )
    assert (trace.tool_calls, trace.tool_results, trace.failed_tool_calls) == (3, 3, 2)
    assert trace.needs == {"tools"}


def test_anthropic_tool_calls_and_failures_are_counted() -> None:
    trace = trace_of(
        [
            user("Run it"),
            {
                "role": "assistant",
                "content": [{"type": "thinking", "thinking": "hm"}, {"type": "tool_use", "input": {}}],
            },
            user(
                [
                    {"type": "tool_result", "content": "all well"},
                    {"type": "tool_result", "content": "no", "is_error": True},
                ]
            ),
            user([{"type": "tool_result", "content": [text_part("a map"), {"type": "image"}]}, text_part("And now?")]),
        ]
    )
    assert (trace.tool_calls, trace.tool_results, trace.failed_tool_calls) == (1, 3, 1)
    assert trace.images == 1
    assert trace.user_text == "Run it\n\nAnd now?"
    assert trace.needs == {"tools", "vision"}


def test_tokens_grow_with_bytes_not_characters() -> None:
    assert trace_of("abcd" * 100).input_tokens == 100
    assert trace_of("日本" * 100).input_tokens == 150


# --- requests that are refused


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("", "empty"),
        (" \n\t", "empty"),
        ([], "empty"),
        (None, "NoneType"),
        (7, "int"),
        (2.5, "float"),
        (b"Hi", "bytes"),
        ({"role": "user"}, "unknown request field"),
        ({}, "needs `messages`"),
        ({"messages": "Hi", "colour": "red"}, "colour"),
        ({"messages": "Hi", "prompt": "Hi"}, "prompt"),
        ({"messages": "Hi", 5: 1}, "unknown request field"),
        ({"messages": "Hi", "verifier": {"trust": 1}}, "VerifierSpec"),
        ({"messages": "Hi", "verifier": {"true_accept": "high"}}, "true_accept|VerifierSpec"),
        (["Hi"], "message 0 is str"),
        ([user("Hi"), None], "message 1 is NoneType"),
        ([{"content": "Hi"}], "unknown role None"),
        ([{"role": "wizard", "content": "Hi"}], "wizard"),
        ([{"role": ["user"], "content": "Hi"}], "unknown role"),
    ],
)
def test_what_is_no_request_is_refused_when_made(value: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        RouteRequest.of(value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (5, "content is int"),
        ({"type": "text", "text": "Hi"}, "content is dict"),
        (b"Hi", "content is bytes"),
        (["Hi"], "must be an object"),
        ([{"text": "Hi"}], "with a `type`"),
        ([{"type": 3}], "with a `type`"),
        ([{"type": "hologram"}], "hologram"),
        ([{"type": "text"}], "needs a string"),
        ([text_part(None)], "needs a string"),
        ([text_part(["Hi"])], "needs a string"),
        (None, "empty"),
        ("", "empty"),
        ("  \n", "empty"),
        ([], "empty"),
        ([text_part(" ")], "empty"),
        ([{"type": "tool_result", "content": 5}], "content is int"),
        ([{"type": "tool_result", "content": [{"type": "hologram"}]}], "hologram"),
    ],
)
def test_content_that_cannot_be_read_is_refused(content: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        trace_of([user(content)])


def test_a_conversation_without_a_users_word_is_refused() -> None:
    with pytest.raises(RequestError, match="empty"):
        trace_of([{"role": "system", "content": "Be kind"}, {"role": "assistant", "content": "Hello"}])


@pytest.mark.parametrize("calls", [5, "abc", {"id": "1"}, [5], [None]])
def test_tool_calls_that_are_no_list_of_objects_are_refused(calls: Any) -> None:
    with pytest.raises(RequestError, match="tool_calls"):
        trace_of([user("Hi"), {"role": "assistant", "tool_calls": calls}])


NAN, INF = float("nan"), float("inf")
AMOUNTS = ("budget_usd", "max_latency_s", "failure_cost_usd", "max_output_tokens", "min_quality", "cached_tokens")


@pytest.mark.parametrize("field", AMOUNTS)
@pytest.mark.parametrize(
    "value",
    [NAN, INF, -INF, -1, "1", "", [], True, pytest.param(10**400, id="401 digits"), pytest.param(10**5_000, id="5001")],
)
def test_amounts_that_are_no_finite_number_are_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(RequestError, match=field):
        RouteRequest.of({"messages": "Hi", field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_latency_s", 0), ("max_output_tokens", 0), ("min_quality", 0), ("min_quality", 1.4),
        ("min_quality", "high"),
        ("allow", "gpt"), ("allow", 5), ("allow", [1]), ("deny", "gpt"), ("deny", None),
        ("require", "vision"), ("require", ["telepathy"]), ("require", [["vision"]]), ("require", 5),
        ("tools", "search"), ("tools", {"name": "f"}), ("tools", ["f"]), ("tools", None),
        ("verifier", True), ("verifier", 0.95),
    ],
)  # fmt: skip
def test_limits_that_cannot_be_read_are_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(RequestError, match=field):
        RouteRequest.of({"messages": "Hi", field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("true_accept", 0), ("true_accept", 1.01), ("true_accept", NAN), ("false_accept", 1.0), ("false_accept", -0.1),
        ("cost_usd", -1), ("cost_usd", INF), ("latency_s", NAN), ("true_accept", "high"), ("false_accept", None),
    ],
)  # fmt: skip
def test_a_verifier_out_of_range_is_refused(field: str, value: Any) -> None:
    with pytest.raises(RequestError, match=field):
        VerifierSpec(**{field: value})


# --- odd input: a trace or a documented error, never a crash

ODD_TEXT = st.text(st.characters(), max_size=20)  # surrogates and control characters included
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | ODD_TEXT
ODD = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ODD_TEXT, inner, max_size=3), max_leaves=6
)
PART_TYPES = st.sampled_from(
    ["text", "image_url", "document", "tool_use", "tool_result", "thinking", "video", "oddity"]
)
PARTS = st.fixed_dictionaries({"type": PART_TYPES}, optional={"text": ODD_TEXT | ODD, "content": ODD, "is_error": ODD})
RESULTS = st.fixed_dictionaries({"type": st.just("tool_result"), "content": st.lists(PARTS, max_size=3)})
CONTENTS = st.one_of(ODD_TEXT, st.lists(PARTS | RESULTS, max_size=3), ODD)
MESSAGES = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "tool", "function", "developer"])},
    optional={"content": CONTENTS, "tool_calls": ODD},
)
FIELDS = st.dictionaries(st.sampled_from(sorted(RouteRequest.__dataclass_fields__)), ODD, max_size=4)


def check_read(value: Any) -> None:
    try:
        trace = read_trace(RouteRequest.of(value))
    except RouterError as error:
        assert str(error)
        assert len(str(error)) < 1_000
        return
    counts = [field for field in trace if isinstance(field, int)]
    assert min(counts) >= 0
    assert trace.failed_tool_calls <= trace.tool_results
    assert trace.user_text.endswith(trace.last_user_text)


@settings(deadline=None, max_examples=300)
@given(st.lists(MESSAGES, max_size=3))
def test_odd_messages_are_read_or_refused(messages: list[Any]) -> None:
    check_read(messages)


@settings(deadline=None, max_examples=200)
@given(MESSAGES)
def test_odd_assistant_turns_are_read_or_refused(message: dict[str, Any]) -> None:
    check_read([user("Hi"), {**message, "role": "assistant"}])


@settings(deadline=None, max_examples=100)
@given(ODD | st.lists(ODD, max_size=3) | FIELDS)
def test_odd_values_are_read_or_refused(value: Any) -> None:
    check_read(value)


@settings(deadline=None, max_examples=200)
@given(FIELDS)
def test_odd_fields_are_read_or_refused(fields: dict[str, Any]) -> None:
    check_read({**fields, "messages": "Hi"})


@pytest.mark.parametrize(
    "text", ["\ud800", "a\udfffb", "\x00\x07\x1b[31m", "\u202e\ufeff", "🙂" * 1_000, "\r\n" * 10 + "x"]
)
def test_surrogates_and_control_characters_are_text(text: str) -> None:
    assert trace_of(text).user_text == trace_of([user([text_part(text)])]).user_text == text


def test_five_megabytes_are_read() -> None:
    trace = trace_of([user("word " * 1_000_000)])
    assert trace.input_tokens >= 1_250_000
    assert len(trace.user_text) == 5_000_000


DEPTH = 20_000
DEEP: dict[str, Any] = {
    "content": [user(nested_list(DEPTH))],
    "part": [user([nested_list(DEPTH)])],
    "object as part": [user([nested_object(DEPTH)])],
    "text": [user([text_part(nested_list(DEPTH))])],
    "part type": [user([{"type": nested_list(DEPTH)}])],
    "role": [{"role": nested_object(DEPTH), "content": "Hi"}],
    "message": [nested_list(DEPTH)],
    "messages": nested_list(DEPTH),
    "tool result": [user([{"type": "tool_result", "content": nested_list(DEPTH)}])],
    "tool result in object": [user([{"type": "tool_result", "content": [nested_object(DEPTH)]}])],
    "budget": {"messages": "Hi", "budget_usd": nested_list(DEPTH)},
    "allow": {"messages": "Hi", "allow": nested_list(DEPTH)},
    "require": {"messages": "Hi", "require": nested_list(DEPTH)},
    "verifier": {"messages": "Hi", "verifier": {"cost_usd": nested_list(DEPTH)}},
    "verifier field": {"messages": "Hi", "verifier": nested_object(DEPTH)},
}


@pytest.mark.parametrize("name", DEEP)
def test_deep_nesting_where_it_has_no_place_is_refused(name: str) -> None:
    with pytest.raises(RequestError) as caught:
        read_trace(RouteRequest.of(DEEP[name]))
    assert len(str(caught.value)) < 1_000


def test_deep_tool_schemas_and_calls_are_read_or_refused() -> None:
    check_read({"messages": "Hi", "tools": [nested_object(DEPTH)]})
    check_read([user("Hi"), {"role": "assistant", "tool_calls": [nested_object(DEPTH)]}])
    check_read({"messages": "Hi", "metadata": nested_object(DEPTH)})


def test_tool_results_within_tool_results_end() -> None:
    inner: dict[str, Any] = {"type": "tool_result", "content": "x"}
    for _ in range(5_000):
        inner = {"type": "tool_result", "content": [inner]}
    trace = trace_of([user([inner])])
    assert trace.tool_results == 1


# --- the decision


def test_a_decision_becomes_json() -> None:
    decision = RouteDecision(
        decision_id="d1", model="small", confidence=0.8, plan_confidence=0.9, escalated=False, degraded=False,
        reason=Reason(ReasonCode.CHEAPEST_LIKELY, "cheapest of two"),
        candidates=(Candidate("small", 0.8, 0.001, None, None), Candidate("big", 0.9, 0.1, 2.0, "too slow")),
        plan=("small", "big"), params={"effort": "low"}, expected_cost_usd=0.01, baseline_cost_usd=0.1, propensity=1.0,
        evidence=Evidence("prior", 0, 0.2, "not measured"), router_version="0",
    )  # fmt: skip
    assert decision.saving_usd == pytest.approx(0.09)
    read_back = json.loads(json.dumps(decision.to_dict()))
    assert read_back["reason"] == {"code": "cheapest_likely", "text": "cheapest of two"}
    assert read_back["plan"] == ["small", "big"]
    assert read_back["candidates"][1]["excluded_by"] == "too slow"
    assert read_back["evidence"]["kind"] == "prior"


def test_a_verifier_says_how_far_it_can_be_trusted() -> None:
    class Silent:
        def verify(self, answer: object) -> None: ...

    with pytest.raises(RequestError, match="verifier"):
        RouteRequest("hi", verifier=Silent())  # type: ignore[arg-type]
