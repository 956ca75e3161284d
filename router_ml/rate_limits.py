"""What providers say of their rate limits in response headers. Pure; a header that makes no sense is passed over."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import NamedTuple

UNTIL_TOLD_S = 60.0  # how long a limit is believed whose reset time nobody says: most limits are per minute
LONGEST_S = 86_400.0  # the longest real limits are per day; a nonsensical reset must not bar a model for years

# "6m0s", "20ms" (OpenAI, Groq)
_PART = re.compile(r"([0-9]+(?:\.[0-9]*)?)(ms|us|µs|ns|d|h|m|s)")
_DURATION = re.compile(rf"(?:{_PART.pattern})+")
_SECONDS = {"d": 86_400.0, "h": 3_600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_LITELLM = "llm_provider-"  # litellm puts it before a provider's own headers
# x-ratelimit-remaining-tokens (OpenAI and most others), anthropic-ratelimit-input-tokens-remaining
_OPENAI = re.compile(r"x-ratelimit-(limit|remaining|reset)(?:-(.+))?")
_ANTHROPIC = re.compile(r"anthropic-ratelimit-(.+)-(limit|remaining|reset)")


class Headroom(NamedTuple):
    """What is left of one limit. :param share: in [0, 1]. :param until: seconds since 1970, when it is renewed."""

    share: float
    until: float


def read_headroom(headers: Mapping[str, str], now: float) -> dict[str, Headroom]:
    """What is left of each limit that the headers speak of, such as ``requests`` or ``input-tokens``.

    :param headers: of a response, names in any case. :param now: seconds since 1970.
    """
    said: dict[str, dict[str, str]] = {}
    for name, value in headers.items():
        if not isinstance(name, str) or "ratelimit" not in (name := name.lower()):
            continue
        name = name.removeprefix(_LITELLM)
        if found := _OPENAI.fullmatch(name):
            said.setdefault(found[2] or "", {})[found[1]] = value
        elif found := _ANTHROPIC.fullmatch(name):
            said.setdefault(found[1], {})[found[2]] = value
    limits: dict[str, Headroom] = {}
    for dimension, values in said.items():
        limit, remaining = _number(values.get("limit")), _number(values.get("remaining"))
        if limit is None or remaining is None or limit <= 0:
            continue
        wait = _wait(values.get("reset"), now)
        until = now + (UNTIL_TOLD_S if wait is None else min(wait, LONGEST_S))
        if until > now:
            limits[dimension] = Headroom(min(1.0, max(0.0, remaining / limit)), until)
    return limits


def retry_after_s(headers: Mapping[str, str] | None, now: float) -> float | None:
    """Seconds after which the provider asks to be called again, in [0, 86400]; None if it does not say.

    :param headers: of a response; ``retry-after-ms`` and ``retry-after``, in seconds or as an HTTP date, are read.
    :param now: seconds since 1970.
    """
    said: dict[str, str] = {}
    for name, value in (headers or {}).items():
        if isinstance(name, str) and "retry-after" in (name := name.lower()):
            said[name.removeprefix(_LITELLM)] = value
    milliseconds = _number(said.get("retry-after-ms"))
    wait = _wait(said.get("retry-after"), now) if milliseconds is None else milliseconds / 1e3
    return None if wait is None else min(max(0.0, wait), LONGEST_S)


def _number(value: object) -> float | None:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _wait(value: object, now: float) -> float | None:
    """Seconds from now: of a number, a time since 1970, a duration, an RFC 3339 time or an HTTP date."""
    number = _number(value)
    if number is not None:
        if number < 1e9:
            return number
        return (number / 1e3 if number > 1e11 else number) - now  # OpenRouter says milliseconds since 1970
    if not isinstance(value, str) or len(value) > 64:
        return None
    text = value.strip()
    if _DURATION.fullmatch(text):
        return sum(float(number) * _SECONDS[unit] for number, unit in _PART.findall(text))
    moment = _moment(text)
    return None if moment is None else moment - now


def _moment(text: str) -> float | None:
    for parse in (datetime.fromisoformat, parsedate_to_datetime):
        try:
            moment = parse(text)
            return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()
        except (ValueError, TypeError, IndexError, AttributeError, OverflowError):  # what dates made of noise raise
            continue
    return None
