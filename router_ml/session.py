"""Which model holds a conversation, and how much of the prompt its provider has cached.

Switching models in a conversation reads the whole prompt again at full price. The policy weighs that if it knows it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from threading import Lock
from typing import NamedTuple

from router_ml.attempt import Usage

CACHE_LIFE_S = 300.0  # the default life of a prompt cache at the large providers
CACHEABLE_TOKENS = 1_024  # shorter prompts are not cached by any of them
MAX_SESSIONS = 100_000
# Providers that cache only what the caller marks; the others cache every long prompt.
_EXPLICIT = ("anthropic/", "bedrock/", "vertex_ai/")


class Held(NamedTuple):
    """The model of a conversation and the prompt tokens that it need not read at full price."""

    model: str
    cached_tokens: int
    at: float


class Sessions:
    """The latest conversations, at most ``MAX_SESSIONS``, the oldest forgotten first. Safe across threads.

    :param clock: seconds since 1970.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._held: OrderedDict[str, Held] = OrderedDict()
        self._lock = Lock()

    def remember(self, session_id: str, model: str, call_name: str, usage: Usage) -> None:
        """Note that a model answered in a conversation. :param call_name: tells which provider's cache it is."""
        cached = usage.cached_tokens
        if not call_name.startswith(_EXPLICIT) and usage.input_tokens >= CACHEABLE_TOKENS:
            cached = usage.input_tokens
        with self._lock:
            self._held[session_id] = Held(model, cached, self._clock())
            self._held.move_to_end(session_id)
            if len(self._held) > MAX_SESSIONS:
                self._held.popitem(last=False)

    def recall(self, session_id: str) -> Held | None:
        """The model that answered last, None if it was never or too long ago."""
        held = self._held.get(session_id)
        return None if held is None or self._clock() - held.at > CACHE_LIFE_S else held
