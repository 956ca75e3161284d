"""How good an answer was, as late feedback says: which answer it is about, and what it comes to as a score."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from router_ml.outcome_rows import IMPORT, LoggedAttempt, LoggedDecision, LoggedFeedback

SCORE_OF_VERDICT = {"good_fit": 1.0, "overprovisioned": 1.0, "underpowered": 0.0, "failed": 0.0}


def answers_of(decision: LoggedDecision) -> dict[str, LoggedAttempt]:
    """Each model's answer; its last one, if it gave several."""
    return {a.model: a for a in decision.attempts if a.kind == "answer" and a.error_kind is None}


def feedback_by_model(decision: LoggedDecision) -> dict[str | None, list[LoggedFeedback]]:
    """Feedback, oldest first, under the model whose answer it is about; under None where no answer was given."""
    given = answer_given(decision)
    said: dict[str | None, list[LoggedFeedback]] = defaultdict(list)
    for one in decision.feedback:
        said[one.model or given].append(one)
    return said


def score_of(said: Iterable[LoggedFeedback]) -> float | None:
    """The newest score, else what the newest verdict comes to; None if there is neither.

    :param said: of one answer, oldest first.
    """
    newest_first = list(said)[::-1]
    score = next((one.score for one in newest_first if one.score is not None), None)
    if score is not None:
        return score
    verdict = next((one.verdict for one in newest_first if one.verdict is not None), None)
    return None if verdict is None else SCORE_OF_VERDICT[verdict]


def scores_of(decision: LoggedDecision) -> dict[str, float | None]:
    """How good each model's answer was, by the newest score, else the newest verdict, else the verifier; else None.

    It names the models that answered, and those that feedback is about.
    """
    answers, said = answers_of(decision), feedback_by_model(decision)
    out: dict[str, float | None] = {}
    for model in [*answers, *(model for model in said if model is not None and model not in answers)]:
        score = score_of(said.get(model, ()))
        accepted = answers[model].accepted if model in answers else None
        out[model] = float(accepted) if score is None and accepted is not None else score
    return out


def answer_given(decision: LoggedDecision) -> str | None:
    """The model whose answer the caller got: the last that answered, or the one decided for if the log saw no call."""
    answered = [a.model for a in decision.attempts if a.kind == "answer" and a.error_kind is None]
    if decision.source == IMPORT:
        return answered[0] if len(answered) == 1 else None
    return answered[-1] if answered else None if decision.attempts else decision.model
