"""Which model holds a conversation, and for how long its cached prompt is worth staying for."""

from __future__ import annotations

import pytest

from router_ml import session
from router_ml.attempt import Usage
from router_ml.session import CACHE_LIFE_S, Sessions

LONG = Usage(5_000, 100)


def test_the_last_model_holds_the_conversation_while_its_cache_lives() -> None:
    now = [1_000.0]
    sessions = Sessions(lambda: now[0])
    sessions.remember("s", "a", "openai/a", LONG)
    sessions.remember("s", "b", "openai/b", LONG)
    now[0] += CACHE_LIFE_S
    held = sessions.recall("s")
    assert held is not None and (held.model, held.cached_tokens) == ("b", 5_000)
    now[0] += 1.0
    assert sessions.recall("s") is None and sessions.recall("other") is None


@pytest.mark.parametrize(
    ("call_name", "usage", "cached"),
    [
        ("openai/a", LONG, 5_000),  # cached by the provider without being asked
        ("openai/a", Usage(500, 100), 0),  # too short for that
        ("anthropic/a", LONG, 0),  # only what the caller marks, and nothing was
        ("anthropic/a", Usage(5_000, 100, 4_000), 4_000),
    ],
)
def test_what_counts_as_cached_depends_on_the_provider(call_name: str, usage: Usage, cached: int) -> None:
    sessions = Sessions(lambda: 0.0)
    sessions.remember("s", "a", call_name, usage)
    held = sessions.recall("s")
    assert held is not None and held.cached_tokens == cached


def test_the_oldest_conversation_is_forgotten_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "MAX_SESSIONS", 2)
    sessions = Sessions(lambda: 0.0)
    for name in ("a", "b", "a", "c"):
        sessions.remember(name, "m", "openai/m", LONG)
    assert sessions.recall("b") is None and sessions.recall("a") is not None and sessions.recall("c") is not None
