"""Checks of an answer's text that need no other program and no model.

The default reliabilities are cautious: a check of the form alone is passed by most wrong answers.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from router_ml.answer import Answer, BaseVerifier, read_json
from router_ml.attempt import Verdict
from router_ml.configuration import is_count
from router_ml.errors import MissingExtraError, VerifierError, brief
from router_ml.request import VerifierSpec

MAX_MATCHED = 200_000  # characters that a regular expression is tried on, about 50,000 tokens
_QUOTE = 20  # characters from which an answer found in a detail is taken for a quotation

_SCHEMA = VerifierSpec(0.99, 0.70)
_REGEX = VerifierSpec(0.98, 0.70)
_FUNCTION = VerifierSpec(0.90, 0.20)
_LENGTH = VerifierSpec(0.99, 0.95)
_REFUSAL_SPEC = VerifierSpec(0.98, 0.95)


@dataclass(frozen=True, slots=True)
class JsonSchema(BaseVerifier):
    """The answer is JSON, bare or in one Markdown code fence, and valid by a JSON Schema (2020-12 unless it says).

    ``format`` is not checked, as the standard has it by default. A ``$ref`` is never fetched: one that points outside
    the schema and the published meta-schemas makes ``verify`` raise VerifierError.

    :param spec: default .99/.70: most wrong answers have the right form.
    :raises VerifierError: if the schema is invalid, with the place. :raises MissingExtraError: without jsonschema.
    """

    name: ClassVar[str] = "json_schema"
    schema: Mapping[str, Any] = field(hash=False)
    spec: VerifierSpec = _SCHEMA
    _validator: Any = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        try:
            own = json.loads(json.dumps(self.schema))  # a copy, so that nobody changes it later
        except (TypeError, ValueError, RecursionError) as exc:
            raise VerifierError(f"json_schema is no JSON ({type(exc).__name__}); expected a JSON Schema") from None
        if not isinstance(own, dict):
            raise VerifierError(f"json_schema is {brief(own)}; expected a JSON Schema (a mapping)")
        object.__setattr__(self, "schema", own)
        object.__setattr__(self, "_validator", _validator(own))

    def _verdict(self, answer: Answer) -> Verdict:
        from referencing.exceptions import Unresolvable

        try:
            read = read_json(answer.text)
        except ValueError as exc:
            return Verdict(False, f"the answer is no JSON: {exc}")
        try:
            error = next(self._validator.iter_errors(read), None)
        except Unresolvable as exc:
            raise VerifierError(f"json_schema: $ref {brief(exc.ref)} leads nowhere; none is fetched") from None
        except RecursionError:
            raise VerifierError("json_schema: schema and answer are nested too deeply to be checked") from None
        # the path in the schema, as the one in the answer and jsonschema's message are made of the answer
        where = "" if error is None else "/".join(map(str, error.absolute_schema_path))[:200]
        return Verdict(error is None, "" if error is None else f"the answer breaks the schema at {where}")


def _validator(schema: dict[str, Any]) -> Any:
    try:
        from jsonschema import Draft202012Validator, SchemaError  # type: ignore[import-untyped]
        from jsonschema.validators import validator_for  # type: ignore[import-untyped]
        from jsonschema_specifications import REGISTRY  # type: ignore[import-untyped]
    except ImportError as exc:
        raise MissingExtraError("jsonschema", "verify") from exc
    try:
        cls = validator_for(schema, default=Draft202012Validator)
        cls.check_schema(schema)
        return cls(schema, registry=REGISTRY)  # the default registry fetches over the network
    except SchemaError as exc:
        raise VerifierError(f"json_schema: {brief(exc.json_path)} is invalid: {brief(exc.message)}") from None
    except Exception as exc:  # nested too deeply, a $schema that is no string
        raise VerifierError(f"json_schema cannot be read: {type(exc).__name__}") from None


@dataclass(frozen=True, slots=True)
class Matches(BaseVerifier):
    """A regular expression is found in the answer (``re.search``; anchor it to match all).

    An expression with nested repeats may take years on a text that almost matches, and nothing can stop it: answers
    above ``MAX_MATCHED`` characters are not checked (VerifierError), and an expression that came over the network runs
    in ``Isolated``.

    :param flags: of ``re``. :param spec: default .98/.70. :raises VerifierError: if the pattern is invalid.
    """

    name: ClassVar[str] = "regex"
    pattern: str
    flags: int = 0
    spec: VerifierSpec = _REGEX
    _compiled: re.Pattern[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.pattern, str):
            raise VerifierError(f"regex is {brief(self.pattern)}; expected a regular expression (a string)")
        try:
            compiled = re.compile(self.pattern, self.flags)
        except Exception as exc:  # beside re.error: OverflowError, RecursionError, wrong flags, a warning made an error
            reason = exc.msg if isinstance(exc, re.error) else type(exc).__name__
            raise VerifierError(f"regex {brief(self.pattern)} is no regular expression: {brief(reason)}") from None
        object.__setattr__(self, "_compiled", compiled)

    def _verdict(self, answer: Answer) -> Verdict:
        if len(answer.text) > MAX_MATCHED:
            raise VerifierError(f"regex: {len(answer.text)} characters are too many; at most {MAX_MATCHED} are matched")
        found = self._compiled.search(answer.text) is not None
        return Verdict(found, "" if found else "the answer does not match the expression")


@dataclass(frozen=True, slots=True)
class Check(BaseVerifier):
    """The caller's own function.

    :param function: answer's text -> bool, or a Verdict, whose cost counts and whose detail is cleared of the answer.
    :param name: for logs and metrics; empty: the function's own.
    :param spec: default .90/.20, as for ``Command``. :raises VerifierError: if it is no plain function.
    """

    function: Callable[[str], bool | Verdict]
    name: str = ""
    spec: VerifierSpec = _FUNCTION

    def __post_init__(self) -> None:
        if not callable(self.function) or inspect.iscoroutinefunction(self.function):
            raise VerifierError(f"check is {brief(self.function)}; expected a function, not an async one")
        if not isinstance(self.name, str):
            raise VerifierError(f"check: name is {brief(self.name)}; expected a string")
        object.__setattr__(self, "name", self.name or str(getattr(self.function, "__name__", "check")))

    def _verdict(self, answer: Answer) -> Verdict:
        said = self.function(answer.text)
        if isinstance(said, bool):
            return Verdict(said, "" if said else f"{self.name} says no")
        if not isinstance(said, Verdict):  # None above all: a forgotten return is no rejection
            raise VerifierError(f"check {brief(self.name)} gave {type(said).__name__}; expected a bool or a Verdict")
        quotes = len(text := answer.text.strip()) > _QUOTE and text in said.detail
        return said._replace(detail=f"{self.name} says no") if quotes else said


@dataclass(frozen=True, slots=True)
class MinimumLength(BaseVerifier):
    """The answer has so many characters, spaces around it not counted. :param spec: default .99/.95."""

    name: ClassVar[str] = "min_length"
    characters: int
    spec: VerifierSpec = _LENGTH

    def __post_init__(self) -> None:
        if not is_count(self.characters) or self.characters < 1:
            raise VerifierError(f"min_length is {brief(self.characters)}; expected a whole number >= 1")

    def _verdict(self, answer: Answer) -> Verdict:
        got = len(answer.text.strip())
        enough = got >= self.characters
        return Verdict(enough, "" if enough else f"the answer has {got} characters, not {self.characters}")


_STOPPED = frozenset({"content_filter", "refusal", "safety"})  # finish reasons of OpenAI, Anthropic, Google
_REACH = 300  # characters read
_HELP = r"(?:help|assist|provide|comply|fulfil|do that|create|generate|write|answer|discuss|engage|continue|share)"
# Beginnings of refusals, as safety tests count them (arXiv 2307.15043, 2308.01263). "I can't" alone is none: "I can't
# find a bug in this" is an answer.
_REFUSALS = re.compile(
    r"\bi(?:'m| am)(?: \w+)? sorry,? (?:but )?(?:i|as an)\b[^.]{0,40}\b(?:can(?:no|')t|unable|not able|won't)"
    rf"|\bi (?:can(?:no|')t|won't|will not|am unable to|am not able to)(?: be able to)? {_HELP}"
    rf"|\bi(?:'m| am) (?:unable|not able|not allowed|not permitted) to {_HELP}"
    r"|\bi (?:must|have to) (?:decline|refuse)|\bas an ai\b[^.]{0,40}\b(?:can(?:no|')t|unable|not able)"
    r"|\bi(?:'m| am) not (?:comfortable|going to be able)"
    r"|\btut mir leid,? (?:aber )?(?:ich|das|dabei)\b[^.]{0,40}\b(?:nicht|kein)"
    r"|\b(?:ich kann|kann ich) (?:dir |ihnen |dabei |das |diese \w+ )*(?:leider )?nicht (?:helfen|beantworten|erf)"
    r"|\bje ne (?:peux|puis) pas (?:vous |t')?(?:aider|répondre|fournir|satisfaire)"
    r"|\bno puedo (?:ayudar|responder|proporcionar|cumplir)"
    r"|\bnon posso (?:aiutar|rispondere|fornire)|\bnão posso (?:ajudar|responder|fornecer)"
    r"|(?:抱歉|对不起)[^。]{0,20}(?:无法|不能)|申し訳[^。]{0,30}(?:できません|いたしかねます)"
)


@dataclass(frozen=True, slots=True)
class NotRefusal(BaseVerifier):
    """The answer does not begin as a refusal does, and the provider did not stop it for its content.

    Reads the beginning; English, German, French, Spanish, Italian, Portuguese, Chinese and Japanese. An
    empty text is no refusal: it may stand beside a tool call.

    :param spec: default .98/.95: few wrong answers are refusals.
    """

    name: ClassVar[str] = "not_refusal"
    spec: VerifierSpec = _REFUSAL_SPEC

    def _verdict(self, answer: Answer) -> Verdict:
        if isinstance(answer.finish_reason, str) and answer.finish_reason.lower() in _STOPPED:
            return Verdict(False, "the provider stopped the answer for its content")
        start = answer.text.lstrip()[:_REACH].lower().replace("\u2019", "'")
        refused = _REFUSALS.search(start) is not None
        return Verdict(not refused, "the answer begins as a refusal does" if refused else "")
