"""Rate-limit headers of providers: each form is read, noise is passed over."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router_ml.rate_limits import read_headroom, retry_after_s

NOW = 1_700_000_000.0  # 2023-11-14T22:13:20Z


def openai(limit: str = "100", remaining: str = "10", reset: str | None = "6m0s", prefix: str = "") -> dict[str, str]:
    headers = {f"{prefix}x-ratelimit-limit-requests": limit, f"{prefix}x-ratelimit-remaining-requests": remaining}
    return headers if reset is None else {**headers, f"{prefix}x-ratelimit-reset-requests": reset}


@pytest.mark.parametrize(
    ("reset", "seconds"),
    [
        ("6m0s", 360.0), ("20ms", 0.02), ("1h2m3.5s", 3723.5), ("1d", 86_400.0), ("7", 7.0), ("1700000009", 9.0),
        ("1700000009000", 9.0), ("2023-11-14T22:13:21Z", 1.0), ("Tue, 14 Nov 2023 22:13:25 GMT", 5.0),
        (None, 60.0), ("soon", 60.0), ("", 60.0), ("400d", 86_400.0), ("1e300", 86_400.0),
    ],
)  # fmt: skip
def test_a_limit_is_believed_until_its_reset(reset: str | None, seconds: float) -> None:
    (found,) = read_headroom(openai(reset=reset), NOW).values()
    assert found.share == 0.1 and found.until == pytest.approx(NOW + seconds, abs=1e-6)


def test_a_limit_that_is_renewed_already_says_nothing() -> None:
    assert read_headroom(openai(reset="2023-11-14T22:13:19Z"), NOW) == {}


@pytest.mark.parametrize("prefix", ["", "llm_provider-", "LLM_Provider-"])
def test_each_dimension_is_read_with_and_without_litellms_prefix(prefix: str) -> None:
    headers = openai(prefix=prefix) | {
        f"{prefix}X-RateLimit-Limit-Tokens": "1000", f"{prefix}X-RateLimit-Remaining-Tokens": "900",
    }  # fmt: skip
    assert {name: one.share for name, one in read_headroom(headers, NOW).items()} == {"requests": 0.1, "tokens": 0.9}


def test_anthropics_dimensions_are_read() -> None:
    headers: dict[str, str] = {}
    for i, name in enumerate(("requests", "tokens", "input-tokens", "output-tokens"), start=1):
        headers |= {
            f"anthropic-ratelimit-{name}-limit": "100",
            f"anthropic-ratelimit-{name}-remaining": str(i),
            f"anthropic-ratelimit-{name}-reset": "2023-11-14T22:14:20Z",
        }
    found = read_headroom(headers, NOW)
    assert {name: one.share for name, one in found.items()} == {
        "requests": 0.01, "tokens": 0.02, "input-tokens": 0.03, "output-tokens": 0.04,
    }  # fmt: skip
    assert {one.until for one in found.values()} == {NOW + 60}


@pytest.mark.parametrize(("limit", "remaining"), [("0", "0"), ("-5", "1"), ("nan", "1"), ("x", "1"), ("10", "inf")])
def test_a_limit_that_makes_no_sense_is_passed_over(limit: str, remaining: str) -> None:
    assert read_headroom(openai(limit, remaining), NOW) == {}


def test_a_limit_without_what_remains_is_passed_over() -> None:
    assert read_headroom({"x-ratelimit-limit-requests": "10"}, NOW) == {}


def test_limits_of_a_litellm_key_are_not_the_providers() -> None:
    headers = {"x-ratelimit-api_key-limit-requests": "10", "x-ratelimit-api_key-remaining-requests": "0"}
    assert read_headroom(headers, NOW) == {}


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"Retry-After": "0.5"}, 0.5),
        ({"llm_provider-retry-after": "7"}, 7.0),
        ({"retry-after-ms": "250", "retry-after": "1"}, 0.25),
        ({"retry-after": "Tue, 14 Nov 2023 22:13:50 GMT"}, 30.0),
        ({"retry-after": "Tue, 14 Nov 2023 22:13:10 GMT"}, 0.0),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after": "1e308"}, 86_400.0),
        ({"retry-after": "later"}, None),
        ({}, None),
        (None, None),
    ],
)
def test_the_wait_that_a_provider_asks_for_is_read(headers: dict[str, str] | None, seconds: float | None) -> None:
    assert retry_after_s(headers, NOW) == seconds


_NAMES = st.sampled_from(
    [
        *openai(), "retry-after", "retry-after-ms", "x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset",
        "anthropic-ratelimit-tokens-limit", "anthropic-ratelimit-tokens-remaining", "anthropic-ratelimit-tokens-reset",
    ]
)  # fmt: skip
_VALUES = (
    st.text(max_size=30)
    | st.from_regex(r"[-+]?[0-9.eE:TZ msh,]{0,20}", fullmatch=True)
    | st.datetimes().map(str)
    | st.floats().map(str)
    | st.integers().map(str)
    | st.sampled_from(["9" * 5_000, "9" * 60 + "h", "\u0661\u0662s"])
    | st.none()
    | st.binary()
)


@given(st.dictionaries(_NAMES | st.text(), _VALUES, max_size=8), st.floats(0, 4e9))
def test_noise_never_raises_and_never_leaves_its_range(headers: dict[str, str], now: float) -> None:
    for one in read_headroom(headers, now).values():
        assert 0.0 <= one.share <= 1.0 and now < one.until <= now + 86_400.0 * 1.001
    wait = retry_after_s(headers, now)
    assert wait is None or (0.0 <= wait <= 86_400.0 and math.isfinite(wait))
