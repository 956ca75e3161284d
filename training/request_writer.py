"""Writes one request of the simulated world from ``training.request_templates``."""

from __future__ import annotations

import json
import random
from functools import cache
from string import Formatter
from typing import Any

from training.outcome_columns import Prompt
from training.request_templates import AGENT_STEPS, CHOICE, FILLERS, GREETINGS, SYSTEM_SENTENCES, TaskTemplates

LEVELS = 5
SYSTEM_PROMPT_SHARE = 0.1


def write_request(task: TaskTemplates, ask: int, level: int, draw: random.Random) -> Prompt:
    """A request that shows its difficulty: by what is asked, by ``level`` demands, and by the length of its numbers.

    :param ask: which of ``task.asks``. :param level: 0..LEVELS - 1.
    :param draw: source of everything else: fillers, details, order. Equal states write equal requests.
    :return: a prompt; messages for agent traces and where there is a system prompt.
    """
    text = _user_text(task, ask, level, draw)
    if task.name == "agent":
        return _trace(text, level, draw)
    if draw.random() < SYSTEM_PROMPT_SHARE:
        sentences = draw.sample(SYSTEM_SENTENCES, 2 + _below(draw, len(SYSTEM_SENTENCES) - 2))
        system = " ".join(_fill(sentence, level, draw) for sentence in sentences)
        return [{"role": "system", "content": system}, {"role": "user", "content": text}]
    return text


def _user_text(task: TaskTemplates, ask: int, level: int, draw: random.Random) -> str:
    question = task.asks[ask]
    if task is CHOICE:
        question = _with_options(question, draw)
    details = draw.sample(task.details, _below(draw, 5))
    demands = [_fill(demand, level, draw) for demand in draw.sample(task.demands, level)]
    parts = [
        _pick(GREETINGS, draw) + _fill(question, level, draw),
        task.separator.join(_fill(detail, level, draw) for detail in details),
        " ".join(demands),
    ]
    if draw.random() < 0.5:  # else the last words of a request would always be its demands
        parts[1], parts[2] = parts[2], parts[1]
    return "\n".join(part for part in parts if part)


def _with_options(question: str, draw: random.Random) -> str:
    stem, *options = question.split("|")
    draw.shuffle(options)
    return stem + "".join(f"\n{letter}) {option}" for letter, option in zip("ABCD", options, strict=True))


def _trace(text: str, level: int, draw: random.Random) -> Prompt:
    """The user's goal and some steps towards it, more of them failed in harder requests."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": text}]
    for step in range(1 + _below(draw, 2) + level // 2):
        command, output, failure = AGENT_STEPS[_below(draw, len(AGENT_STEPS))]
        shown = failure if draw.random() < 0.15 * level else output
        call_id = f"call_{step + 1}"
        arguments = json.dumps({"command": _fill(command, level, draw)})
        function = {"name": "shell", "arguments": arguments}
        call = {"id": call_id, "type": "function", "function": function}
        messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
        messages.append({"role": "tool", "tool_call_id": call_id, "content": _fill(shown, level, draw)})
    return messages


def _fill(template: str, level: int, draw: random.Random) -> str:
    parts: list[str] = []
    for literal, slot in _pieces(template):
        parts.append(literal)
        if slot == "k":
            parts.append(str(2 + _below(draw, 8)))
        elif slot == "n":
            least = 10 ** (level + 1)
            parts.append(str(least + _below(draw, 9 * least)))
        elif slot is not None:
            parts.append(_pick(FILLERS[slot], draw))
    return "".join(parts)


@cache
def _pieces(template: str) -> tuple[tuple[str, str | None], ...]:
    return tuple((literal, slot) for literal, slot, _, _ in Formatter().parse(template))


def _pick(options: tuple[str, ...], draw: random.Random) -> str:
    return options[_below(draw, len(options))]


def _below(draw: random.Random, n: int) -> int:
    return int(draw.random() * n)  # about five times as fast as randrange, which a million requests notice
