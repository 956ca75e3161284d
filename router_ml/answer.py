"""The answer that is checked, and what every verifier has in common.

A check that breaks loses no answer: ``BaseVerifier.verify`` raises VerifierError and nothing else, and whoever carries
a decision out then treats the answer as not checked. Neither a verdict nor an error quotes the answer.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, Protocol

from router_ml.errors import RouterError, VerifierError, brief

if TYPE_CHECKING:
    from router_ml.attempt import Verdict
    from router_ml.request import RouteRequest, VerifierSpec

Call = Callable[[str, list[dict[str, Any]]], tuple[str, float]]


class Answer(NamedTuple):
    """What a model gave back.

    :param finish_reason: why the provider says that it stopped.
    :param call: (model of the pool, messages) -> (text, cost in USD), for a judge; None if no model can be called.
        It sees every cost, also of a check that then breaks.
    """

    text: str
    request: RouteRequest
    finish_reason: str | None = None
    call: Call | None = None


class Verifier(Protocol):
    """Says whether an answer is acceptable."""

    @property
    def spec(self) -> VerifierSpec:
        """How far its verdict can be trusted."""

    @property
    def name(self) -> str:
        """Short, for logs and metrics; the same for every verifier of its kind."""

    def verify(self, answer: Answer) -> Verdict:
        """:raises VerifierError: if it cannot say; the answer then counts as not checked."""


class BaseVerifier:
    """``verify`` by a subclass's ``_verdict``: timed, and whatever breaks becomes a VerifierError."""

    __slots__ = ()

    @property
    def name(self) -> str:
        """The kind of verifier."""
        raise NotImplementedError

    def verify(self, answer: Answer) -> Verdict:
        """Check one answer.

        :return: the verdict, with the seconds it took. Its detail never holds the answer's text.
        :raises VerifierError: if the check itself breaks.
        """
        started = time.perf_counter()
        try:
            verdict = self._verdict(answer)
        except VerifierError:
            raise
        except (Exception, SystemExit) as exc:  # a test runner called from a check may exit
            # not `from exc`: a traceback in a log would print its message, which may quote the answer
            raise VerifierError(f"verifier {brief(self.name)} cannot check: {_cause(exc)}") from None
        return verdict._replace(latency_s=time.perf_counter() - started)

    def _verdict(self, answer: Answer) -> Verdict:
        raise NotImplementedError


def read_json(text: str) -> Any:
    """JSON of a model's text, which may stand in one Markdown code fence.

    :raises ValueError: saying what is wrong and where, without the text.
    """
    try:
        return json.loads(_unfenced(text), parse_constant=_refuse_constant, object_pairs_hook=_unique)
    except json.JSONDecodeError as exc:
        raise ValueError(f"{exc.msg}, line {exc.lineno} column {exc.colno}") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _unfenced(text: str) -> str:
    text = text.strip()
    if len(text) < 6 or not (text.startswith("```") and text.endswith("```")):
        return text
    info, newline, rest = text[3:-3].partition("\n")
    return rest if newline and not info.lstrip().startswith(("{", "[", '"')) else text[3:-3]


def _refuse_constant(token: str) -> NoReturn:
    raise ValueError(f"{token} is no JSON number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # of two "accepted" keys one reader would take the first, another the last
    if len(read := dict(pairs)) < len(pairs):
        raise ValueError("an object has a key twice")
    return read


def _cause(exc: BaseException) -> str:
    """What broke and where. An exception's own message is kept only if it is one of ours, which quote no answer."""
    if isinstance(exc, RouterError):
        return f"{type(exc).__name__}: {exc}"
    frame = exc.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    where = f" at {PurePath(frame.tb_frame.f_code.co_filename).name}:{frame.tb_lineno}" if frame is not None else ""
    return f"{type(exc).__name__}{where}"
