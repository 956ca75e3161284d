"""The reliability of verifiers, learned from an outcome log: verdicts, and what late feedback said of the same answers.

    router-ml outcomes verifiers [--log URL] [--since TIME] [--json] [--out verifiers.yaml]

The file holds the cautious ends, of what has enough labels; ``verifiers: verifiers.yaml`` in pool.yaml makes the router
plan with them. How rates are estimated where most answers have no label is in ``training.acceptance``.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table
from rich.text import Text

from router_ml.explanation import usd
from router_ml.outcome_rows import LoggedDecision
from router_ml.reliability import MeasuredRates, MeasuredVerifier
from router_ml.terminal import table_of
from training.acceptance import Acceptance, Rate, Verdicts, acceptance
from training.outcome_labels import answers_of, feedback_by_model, score_of

LEVEL = 0.9
MIN_LABELS = 20  # fewer, and an interval says little more than that nothing is known: what is declared holds then
SUCCESS_SCORE = 0.5


class Checked(NamedTuple):
    """One answer that a verifier judged. ``right`` is None without a label."""

    verifier: str
    task: str | None
    model: str
    decision: str
    accepted: bool
    right: bool | None
    cost_usd: float | None
    latency_s: float | None


@dataclass(frozen=True)
class VerifierRow:
    """What is known of one verifier, on one task or (``task`` None) on all requests, those without a task included.

    :param true_accept: None if no answer has a label; as ``false_accept``.
    :param n_accepted: verdicts. :param n_accepted_labelled: those of them with a label; the same for rejections.
    :param cost_usd: mean of a check; None if no check has one. :param latency_s: mean seconds of a check.
    """

    verifier: str
    task: str | None
    true_accept: Rate | None
    false_accept: Rate | None
    n_accepted: int
    n_accepted_labelled: int
    n_rejected: int
    n_rejected_labelled: int
    cost_usd: float | None
    latency_s: float | None

    def measured(self, min_labels: int) -> MeasuredRates:
        """The cautious ends, of the rates with enough labels."""
        right, wrong = self.true_accept, self.false_accept
        held = right is not None and right.n >= min_labels, wrong is not None and wrong.n >= min_labels
        seen = self.n_accepted + self.n_rejected >= min_labels
        return MeasuredRates(
            true_accept=max(_shortened(right.low), 1e-4) if right is not None and held[0] else None,
            false_accept=min(_shortened(wrong.high), 0.9999) if wrong is not None and held[1] else None,
            # zero is what a check reports that does not count its cost or its time
            cost_usd=_shortened(self.cost_usd) if seen and self.cost_usd else None,
            latency_s=_shortened(self.latency_s) if seen and self.latency_s else None,
            n_right=None if right is None else right.n,
            n_wrong=None if wrong is None else wrong.n,
        )


@dataclass(frozen=True)
class Reliability:
    """What a log says of its verifiers.

    :param rows: by verifier: first over all requests, then by task.
    :param level: of the intervals.
    :param n_unnamed: verdicts left out, as the log was written before it named verifiers.
    """

    rows: tuple[VerifierRow, ...]
    level: float
    n_unnamed: int

    def measured(self, min_labels: int = MIN_LABELS) -> dict[str, MeasuredVerifier]:
        """The section ``verifiers`` of a pool: cautious ends, each only where enough labels stand behind it.

        :param min_labels: right answers with a label for ``true_accept``, wrong ones for ``false_accept``. A task with
            fewer has the rates of the whole, a verifier with fewer those that it declares.
        """
        tasks: dict[str, dict[str, MeasuredRates]] = defaultdict(dict)
        for row in self.rows:
            rates = row.measured(min_labels)
            if row.task is not None and (rates.true_accept, rates.false_accept) != (None, None):
                tasks[row.verifier][row.task] = rates
        out = {}
        for row in self.rows:
            rates = row.measured(min_labels)
            if row.task is None and {rates.true_accept, rates.false_accept, rates.cost_usd, rates.latency_s} != {None}:
                out[row.verifier] = MeasuredVerifier(**asdict(rates), tasks=tasks[row.verifier])
        return out

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready built-in types."""
        rows = [
            asdict(row) | {k: None if (r := getattr(row, k)) is None else r._asdict() for k in _RATES}
            for row in self.rows
        ]
        return {"level": self.level, "n_unnamed": self.n_unnamed, "rows": rows}

    def table(self) -> Table:
        """For people."""
        table = table_of(
            "verifier", "task", ">true accept", ">n right", ">false accept", ">n wrong", ">accepted", ">rejected",
            ">USD", ">seconds",
        )  # fmt: skip
        table.caption = "accepted, rejected: with a label / all"
        for row in self.rows:
            rates = [cell for rate in (row.true_accept, row.false_accept) for cell in _cells(rate)]
            accepted = f"{row.n_accepted_labelled} / {row.n_accepted}"
            rejected = f"{row.n_rejected_labelled} / {row.n_rejected}"
            cost, seconds = row.cost_usd, row.latency_s
            table.add_row(
                Text(row.verifier), Text("(all)" if row.task is None else row.task), *rates, accepted, rejected,
                "" if cost is None else usd(cost), "" if seconds is None else f"{seconds:.2g}",
                style="bold" if row.task is None else "",
            )  # fmt: skip
        return table

    def notes(self) -> list[str]:
        """What a reader of the table should know of it."""
        out = [
            f"{row.verifier}: none of its {row.n_rejected} rejected answers has a label, so its true acceptance is "
            "hardly known; give feedback on some of them, with `model=`"
            for row in self.rows
            if row.task is None and row.n_rejected and row.n_accepted_labelled and not row.n_rejected_labelled
        ]
        if self.n_unnamed:
            out.append(f"{self.n_unnamed} verdicts left out: logged before the log named its verifiers")
        return out

    def write(self, path: Path, min_labels: int = MIN_LABELS) -> int:
        """Write what pool.yaml can name as its ``verifiers``: YAML, or JSON where the file's name ends so.

        :return: number of verifiers in it.
        """
        content = {"verifiers": {name: rates.to_dict() for name, rates in self.measured(min_labels).items()}}
        if path.suffix == ".json":
            text = json.dumps(content, indent=2, allow_nan=False) + "\n"
        else:
            import yaml  # type: ignore[import-untyped]

            head = (
                "# Measured by `router-ml outcomes verifiers`. The acceptances are the cautious ends of intervals of\n"
                f"# {self.level:.0%}, from at least {min_labels} labelled right (n_right) or wrong (n_wrong) answers.\n"
            )
            text = head + yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120)
        path.write_text(text, encoding="utf-8")
        return len(content["verifiers"])


_RATES = ("true_accept", "false_accept")


def reliability(
    decisions: Iterable[LoggedDecision], *, level: float = LEVEL, success_score: float = SUCCESS_SCORE, seed: int = 0
) -> Reliability:
    """Estimate true and false acceptance of each verifier that a log names, over all and by task.

    :param decisions: as ``OutcomeLog.decisions`` gives them; they may be a stream.
    :param level: of the two-sided intervals, in (0, 1). :param success_score: score from which an answer is right.
    :param seed: of the draws.
    """
    held: dict[str, list[Checked]] = defaultdict(list)
    unnamed = 0
    for decision in decisions:
        for one in checked_answers(decision, success_score):
            if one is None:
                unnamed += 1
            else:
                held[one.verifier].append(one)
    rows = [row for name in sorted(held) for row in _rows(held[name], level, seed)]
    return Reliability(tuple(rows), level, unnamed)


def checked_answers(decision: LoggedDecision, success_score: float = SUCCESS_SCORE) -> list[Checked | None]:
    """The verdicts of one decision, with what is known of their answers; None for a verdict of who knows what.

    A label is of a model's last answer, which is the one that feedback is about.
    """
    last, said = answers_of(decision), feedback_by_model(decision)
    out: list[Checked | None] = []
    for attempt in decision.attempts:
        if attempt.accepted is None:
            continue
        if attempt.verifier is None:
            out.append(None)
            continue
        score = score_of(said.get(attempt.model, ())) if last.get(attempt.model) is attempt else None
        right = None if score is None else score >= success_score
        out.append(Checked(
            attempt.verifier, decision.task, attempt.model, decision.decision_id, attempt.accepted, right,
            attempt.verdict_cost_usd, attempt.verdict_latency_s,
        ))  # fmt: skip
    return out


def _rows(answers: list[Checked], level: float, seed: int) -> list[VerifierRow]:
    """One verifier's rows: over all, then each task by name."""
    tasks = sorted({one.task for one in answers}, key=lambda task: (task is None, task))
    whole: Acceptance | None = None
    by_task: list[Acceptance | None] = [None] * len(tasks)
    if any(one.right is not None for one in answers):
        whole, found = acceptance(_verdicts(answers, tasks), level, seed=seed)
        by_task = list(found)
    of_task: dict[str | None, list[Checked]] = defaultdict(list)
    for one in answers:
        of_task[one.task].append(one)
    rows = [_row(None, answers, whole)]
    named = [(task, rates) for task, rates in zip(tasks, by_task, strict=True) if task is not None]
    return rows + [_row(task, of_task[task], rates) for task, rates in named]


def _verdicts(answers: list[Checked], tasks: list[str | None]) -> Verdicts:
    codes = {task: code for code, task in enumerate(tasks)}
    return Verdicts(
        np.array([codes[one.task] for one in answers]),
        np.unique([one.model for one in answers], return_inverse=True)[1],
        np.unique([one.decision for one in answers], return_inverse=True)[1],
        np.array([one.accepted for one in answers]),
        np.array([-1 if one.right is None else int(one.right) for one in answers]),
    )


def _row(task: str | None, answers: list[Checked], rates: Acceptance | None) -> VerifierRow:
    accepted = [one for one in answers if one.accepted]
    rejected = [one for one in answers if not one.accepted]
    true_accept, false_accept = (None, None) if rates is None else rates
    return VerifierRow(
        answers[0].verifier, task, true_accept, false_accept, len(accepted), _labelled(accepted), len(rejected),
        _labelled(rejected), _mean(one.cost_usd for one in answers), _mean(one.latency_s for one in answers),
    )  # fmt: skip


def _labelled(answers: list[Checked]) -> int:
    return sum(one.right is not None for one in answers)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _shortened(number: float) -> float:
    return float(f"{number:.4g}")


def _cells(rate: Rate | None) -> tuple[str, str]:
    if rate is None:
        return "", "0"
    return f"{rate.value:.3f} [{rate.low:.3f}, {rate.high:.3f}]", str(rate.n)
