"""Does traffic keep what the router promised? The outcome log against the promise in the artifact.

    router-ml promises --router DIR [--log URL] [--since TIME] [--json]

Of each decision with a label the score of the answer that the caller got is compared with the escalation model's
quality on the same traffic, which is estimated (doubly robust, Dudik et al. 1103.4601)::

    e = p + [the escalation model was chosen] * (its score - p) / propensity        p: its predicted P(success)

Where exploration could have taken the escalation model every time (propensity below 1) this is unbiased, however wrong
``p`` is: the basis is "measured". Else what that model would have done on the requests it did not get is ``p`` and
nothing more: "predicted".

Intervals are of a fixed sample and asymptotic (normal, groups as units). Who looks every day and stops at the first
"broken" will see one by chance more often than the level says. Labels must not depend on how good an answer was.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any, Literal, NamedTuple

import click
import numpy as np

from router_ml.artifact import read_manifest
from router_ml.cli import run
from router_ml.errors import RouterError
from router_ml.outcome_rows import IMPORT
from router_ml.outcomes import DEFAULT_URL, LoggedDecision, OutcomeLog
from router_ml.request import ReasonCode
from training.metrics import FloatArray, clustered_mean
from training.outcome_labels import answer_given, scores_of
from training.outcome_log import moment

State = Literal["kept", "broken", "not enough data yet", "nothing promised"]
FEWEST_GROUPS = 30  # with a label, below which a normal interval says nothing
FEWEST_EXPLORED = 10  # times that exploration took the escalation model: each weighs as much as all of the others
CHOOSING = (
    "min_quality", "failure_cost_usd", "pin", "allow", "deny", "require", "local_only", "budget_usd", "max_latency_s",
    "verifier",
)  # fmt: skip  # limits of a request by which something else than the pool may decide
BY_POOL = (  # what decided the requests that the promise was made on: the threshold and the pool's own rules
    ReasonCode.CHEAPEST_LIKELY, ReasonCode.LOW_CONFIDENCE, ReasonCode.UNLIKE, ReasonCode.LOWEST_EXPECTED_LOSS,
    ReasonCode.RULE, ReasonCode.EXPLORATION,
)  # fmt: skip

NO_LABEL = "no score, no verdict and no check of the answer"
OTHER_ROUTER = "decided by another router version, or imported"
OTHER_REASONS = "a limit of the request, a plan or a budget decided, or may have"
NOT_ELIGIBLE = "the escalation model could not take the request"


class Seen(NamedTuple):
    """One labelled decision.

    :param score: of the answer that the caller got. :param p: predicted P(success) of the escalation model.
    :param escalation_score: of its answer, None if another model was chosen. :param explored: not by the threshold.
    """

    group: str
    task: str | None
    score: float
    p: float
    escalation_score: float | None
    propensity: float
    explored: bool


@dataclass(frozen=True)
class Check:
    """What a log says of one promise.

    :param task: None: of all traffic, or of what has no promise of its own.
    :param quality: mean score of the router's choices. :param escalation_quality: the escalation model's, estimated.
    :param gain: ``quality - target * escalation_quality``; ``low`` and ``high`` bound it, each with ``confidence``.
    """

    state: State
    task: str | None
    n: int
    n_groups: int
    basis: Literal["measured", "predicted"]
    target_quality: float
    confidence: float
    quality: float | None
    escalation_quality: float | None
    gain: float | None
    low: float | None
    high: float | None
    note: str

    def line(self) -> str:
        """For people."""
        what = "all traffic" if self.task is None else f"task {self.task}"
        head = f"{self.state}: {what}, {self.target_quality:.0%} of the escalation model's quality"
        if self.gain is None or self.quality is None or self.escalation_quality is None:
            return f"{head}; {self.note}"
        return (
            f"{head}; n = {self.n:,} in {self.n_groups:,} groups, quality {self.quality:.3f} against "
            f"{self.escalation_quality:.3f} ({self.basis}), lead over the target {self.gain:+.4f} "
            f"[{self.low:+.4f}, {self.high:+.4f}], each end at {self.confidence:.3g}; {self.note}"
        )


def read_log(
    log: OutcomeLog, router_version: str, escalation: str, since: float | None = None, until: float | None = None
) -> tuple[list[Seen], dict[str, int]]:
    """Labelled decisions that the threshold or a rule of the pool made, and how many were left out, by reason.

    :raises OutcomeLogError: if the log cannot be read.
    """
    seen: list[Seen] = []
    left_out: Counter[str] = Counter()
    for decision in log.decisions(since, until):
        found = _seen(decision, router_version, escalation)
        if isinstance(found, str):
            left_out[found] += 1
        else:
            seen.append(found)
    return seen, dict(left_out)


def _seen(decision: LoggedDecision, router_version: str, escalation: str) -> Seen | str:
    if decision.source == IMPORT or decision.router_version != router_version or decision.model is None:
        return OTHER_ROUTER
    limited = any(name in decision.limits for name in CHOOSING)
    if limited or decision.degraded or decision.reason_code not in BY_POOL:
        return OTHER_REASONS
    candidate = next((one for one in decision.candidates if one.model == escalation), None)
    if candidate is None or candidate.excluded_by is not None or not decision.propensity:
        return NOT_ELIGIBLE
    scores = scores_of(decision)
    score = scores.get(answer_given(decision) or "")
    escalated = decision.model == escalation
    own = scores.get(escalation) if escalated else None
    if score is None or (escalated and own is None):
        return NO_LABEL
    return Seen(
        decision.session_id or decision.decision_id, decision.task, score, candidate.p_success, own,
        decision.propensity, decision.reason_code == ReasonCode.EXPLORATION,
    )  # fmt: skip


def check(seen: Sequence[Seen], target: float, confidence: float, task: str | None = None) -> Check:
    """Compare labelled decisions with what was promised of them.

    :param target: share of the escalation model's quality. :param confidence: of each end of the interval.
    """
    n, n_groups = len(seen), len({one.group for one in seen})
    measured = bool(seen) and all(one.propensity < 1.0 or one.escalation_score is not None for one in seen)
    basis: Literal["measured", "predicted"] = "measured" if measured else "predicted"
    nothing = Check(
        "not enough data yet", task, n, n_groups, basis, target, confidence, None, None, None, None, None, ""
    )  # fmt: skip
    others = sum(one.escalation_score is None for one in seen)
    tries = sum(one.explored and one.escalation_score is not None for one in seen)
    decided = len({one.group for one in seen if not one.explored})
    if decided < FEWEST_GROUPS:
        return _with(nothing, note=f"{decided} labelled groups; at least {FEWEST_GROUPS} are needed")
    if measured and others and tries < FEWEST_EXPLORED:
        note = f"exploration took the escalation model {tries} times; at least {FEWEST_EXPLORED} are needed"
        return _with(nothing, note=note)
    quality, reference, per_row = _estimates(seen, target)
    gain = quality - target * reference
    _, sampling = clustered_mean(per_row, np.ones(n), [one.group for one in seen])
    error = math.hypot(sampling, target * _unseen(seen) / n)
    reach = NormalDist().inv_cdf(confidence) * error
    state: State = "kept" if gain - reach >= 0 else "broken" if gain + reach < 0 else "not enough data yet"
    note = "fixed-sample interval"
    if not measured:
        note += "; the escalation model's quality is its predicted P(success) wherever it was not called"
    return _with(
        nothing, state=state, quality=quality, escalation_quality=reference, gain=gain, low=gain - reach,
        high=gain + reach, note=note,
    )  # fmt: skip


def _with(found: Check, **changes: Any) -> Check:
    return Check(**{**asdict(found), **changes})


def _estimates(seen: Sequence[Seen], target: float) -> tuple[float, float, FloatArray]:
    """Quality of the threshold's choices, of the escalation model, and each row's share in the error of the gain."""
    score, p, propensity = np.array([(one.score, one.p, one.propensity) for one in seen]).T
    own = np.array([math.nan if one.escalation_score is None else one.escalation_score for one in seen])
    # what exploration chose is no choice of the threshold; what was left to it weighs more (self-normalised)
    weight = np.array([not one.explored for one in seen]) / propensity
    escalation = p + np.where(np.isnan(own), 0.0, (own - p) / propensity)
    quality = float(np.average(score, weights=weight))
    reference = float(escalation.mean())
    return quality, reference, weight / weight.mean() * (score - quality) - target * (escalation - reference)


def _unseen(seen: Sequence[Seen]) -> float:
    """What one more failure of the escalation model would weigh, where exploration tried it: at most.

    Failures weigh much and are few. Where chance shows too few of them the model looks too good and the error too
    small at once. In simulated logs that gave .13 to .15 false alarms at level .1; as if one more were there, .12.
    """
    weights = [one.p / one.propensity for one in seen if one.explored and one.escalation_score is not None]
    return max(weights, default=0.0)


def checks(promise: Mapping[str, Any], seen: Sequence[Seen]) -> Iterator[Check]:
    """One check for each promise in a manifest."""
    parts: dict[str | None, Mapping[str, Any]] = {None: promise, **promise.get("by_task", {})}
    for task, part in parts.items():
        own = [one for one in seen if len(parts) == 1 or (one.task if one.task in parts else None) == task]
        # nothing was promised of a part in which everything escalates
        promised = part["threshold"] < 1.0
        confidence = 1.0 - part.get("level", 1.0 - promise["confidence"])
        found = check(own if promised else [], promise["target_quality"], confidence, task)
        yield found if promised else _with(found, state="nothing promised", note=part["reason"])


@click.command(name="promises")
@click.option("--router", "folder", type=click.Path(path_type=Path), required=True, help="A saved router.")
@click.option(
    "--log", "url", envvar="ROUTER_ML_LOG", default=DEFAULT_URL, show_default=True, metavar="URL",
    help="Its outcome log. [env: ROUTER_ML_LOG]",
)  # fmt: skip
@click.option("--since", callback=moment, metavar="TIME", help="Decisions from then on: seconds or ISO 8601, UTC.")
@click.option("--until", callback=moment, metavar="TIME", help="Decisions before then.")
@click.option("--json", "as_json", is_flag=True, help="Print what was found as JSON.")
def command(folder: Path, url: str, since: float | None, until: float | None, as_json: bool) -> int:
    """Check a router's promise against its log: kept, broken, or not enough data yet.

    Exits with 1 if a promise is broken.
    """
    manifest = read_manifest(folder)
    promise = manifest.get("promise")
    if promise is None:
        raise RouterError(f"{folder} promises nothing; train it with --target-quality")
    with OutcomeLog(url, create=False) as log:
        seen, left_out = read_log(log, manifest["router_version"], promise["escalation_model"], since, until)
        name = log.name
    found = list(checks(promise, seen))
    if as_json:
        report = {"log": name, "router_version": manifest["router_version"], "left_out": left_out}
        click.echo(json.dumps({**report, "checks": [asdict(one) for one in found]}, allow_nan=False))
    else:
        for one in found:
            click.echo(one.line())
        for reason, n in left_out.items():
            click.echo(f"left out {n}: {reason}")
    broken = [one for one in found if one.state == "broken"]
    if broken:
        click.echo(f"promises: {len(broken)} broken; {broken[0].line()}", err=True)
    return int(bool(broken))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see ``router_ml.cli.run`` for the exit codes."""
    return run(command, argv)


if __name__ == "__main__":
    raise SystemExit(main())
