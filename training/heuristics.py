"""Keyword rules that people route by: how complex a text looks, which type of task it is, and a price tier for each.

Baselines, to be compared with and not to be served. Both rules add their own operating points, in a fixed number, so
that folds can be put side by side.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Self

import numpy as np

from training.metrics import FloatArray, IntArray
from training.prediction import GroupTable, Prediction, Requests, check_fitted, column_means, cost_means

_SCANNED = 10_000  # characters at each end of a text that keyword rules look at


def _words(*words: str) -> re.Pattern[str]:
    return re.compile(r"\b(?:" + "|".join(words) + r")\b", re.IGNORECASE)


_CODE_WORDS = _words(
    "function", "class", "def", "const", "import", "return", "async", "await", "exception", "error", "debug", "api",
    "endpoint", "database", "sql", "query", "schema", "algorithm", "implement", "refactor", "optimi[sz]e", "python",
    "javascript", "typescript", "java", "rust", "golang", "react", "docker", "kubernetes", "git", "commit", "branch",
)  # fmt: skip
_REASONING_WORDS = _words(
    "step by step", "think through", "reason through", "break down", "explain your reasoning", "show your work",
    "think carefully", "consider all", "evaluate", "pros and cons", "compare and contrast", "weigh the options",
    "logical", "deduce", "infer", "conclude", "prove",
)  # fmt: skip
_TECHNICAL_WORDS = _words(
    "architecture", "distributed", "scalable", "microservices?", "machine learning", "neural network", "encryption",
    "authentication", "authori[sz]ation", "performance", "latency", "throughput", "benchmark", "concurrency", "memory",
    "parallel", "threading", "cpu", "gpu", "optimi[sz]ation", "protocol", "tcp", "http", "container", "orchestration",
)  # fmt: skip
_SIMPLE_WORDS = _words(
    "what is", "what's", "define", "definition of", "who is", "who was", "when did", "when was", "where is",
    "where was", "how many", "how much", "yes or no", "true or false", "simple", "brief", "short", "quick", "hello",
    "hi", "hey", "thanks", "thank you", "bye",
)  # fmt: skip
_STEPS = re.compile(r"\bfirst\b.{0,200}\bthen\b|\bstep \d|^\s*\d+[.)]\s", re.IGNORECASE | re.MULTILINE)


def complexity(text: str) -> tuple[float, bool]:
    """How hard a request looks to a keyword rule.

    After the complexity router that LiteLLM ships (1.106), which follows ClawRouter: its weights, thresholds and
    four-character tokens, with shorter word lists. Matches are counted by distinct word.

    :param text: the prompt; of a long one, both ends.
    :return: a weighted sum in [-.15, .925], and whether two or more calls for reasoning force the top tier.
    """
    scanned = _both_ends(text)
    tokens = len(text) / 4
    reasoning = _distinct(_REASONING_WORDS, scanned)
    score = (
        0.10 * (-1.0 if tokens < 15 else 1.0 if tokens > 400 else 0.0)
        + 0.30 * (0.0, 0.5, 1.0)[min(_distinct(_CODE_WORDS, scanned), 2)]
        + 0.25 * (0.0, 0.7, 1.0)[min(reasoning, 2)]
        + 0.25 * (0.0, 0.5, 1.0)[min(_distinct(_TECHNICAL_WORDS, scanned) // 2, 2)]
        - 0.05 * bool(_SIMPLE_WORDS.search(scanned))
        + 0.03 * 0.5 * bool(_STEPS.search(scanned))
        + 0.02 * 0.5 * (scanned.count("?") > 3)
    )
    return score, reasoning >= 2


class ComplexityHeuristic:
    """Keyword complexity -> one of four tiers -> a model by price, as routers in common use do.

    The first operating point has the published cut-offs; the others move all cut-offs together until everything goes
    to the lowest or to the highest tier. ``p`` and ``c`` are the training means of the tier, so that calibration and
    AUC say what the tiers are worth as predictions.
    """

    cutoffs = (0.15, 0.35, 0.60)
    shifts = (0.0, *np.linspace(-1.0, 1.0, 41).tolist())

    def fit(self, requests: Requests, score: FloatArray, cost: FloatArray) -> Self:
        """Learn which model serves a tier, and the means per tier."""
        tiers = self._tiers(requests)[0]
        self.models_ = tier_models(score, cost, len(self.cutoffs) + 1)
        self.table_ = GroupTable().fit([str(tier) for tier in tiers], score, cost)
        return self

    def predict(self, requests: Requests) -> Prediction:
        """Tier each request under all shifts."""
        check_fitted(self, "table_")
        tiers = self._tiers(requests)
        means = self.table_.predict([str(tier) for tier in tiers[0]])
        return Prediction(means.p, means.c, self.models_[tiers])

    def _tiers(self, requests: Requests) -> IntArray:
        """(L, n) tiers, one row per shift."""
        scored = [complexity(text) for text in requests.texts]
        score = np.array([value for value, _ in scored])
        forced = np.array([force for _, force in scored], dtype=bool)
        shifted = score[None, :] + np.array(self.shifts)[:, None]
        tiers = np.searchsorted(self.cutoffs, shifted, side="right")
        return np.where(forced & (shifted >= self.cutoffs[0]), len(self.cutoffs), tiers).astype(np.intp)


# Task type -> how a keyword rule recognises it, and which price tier (0 cheap, 1 middle, 2 dear) is customary for it.
# First match wins; what matches nothing is chat.
_TASK_TYPES: Mapping[str, tuple[re.Pattern[str], int]] = {
    name: (re.compile(pattern, re.IGNORECASE), tier)
    for name, tier, pattern in (
        ("code", 2, r"```|\bdef \w+\(|\bclass \w+[:({]|\btraceback\b|#include|\b(?:function|python|javascript"
         r"|typescript|java|rust|sql|regex|unit tests?|refactor|debug|compile|stack ?trace)\b"),
        ("math", 2, r"\\frac|\\sqrt|\$[^$\n]{1,200}\$|\b(?:equation|integral|derivative|theorem|prove|proof|solve for"
         r"|probability|polynomial|triangle|algebra|geometry|modulo|calculate|compute)\b"),
        ("extraction", 0, r"\b(?:extract|parse|classify|label|categori[sz]e|convert .{1,40} to (?:json|csv|xml))\b"),
        ("summary", 0, r"\b(?:summari[sz]e|summary|tl;?dr|shorten|key points)\b"),
        ("translation", 1, r"\btranslat(?:e|ion)\b"),
        ("writing", 1, r"\b(?:write|draft|compose|rewrite|proofread|essay|e-?mail|blog|story|poem|letter)\b"),
        ("reasoning", 2, r"\b(?:why|explain|analy[sz]e|compare|trade-?offs?|design|plan|step by step|strategy)\b"),
    )
}  # fmt: skip


def guess_task_type(text: str) -> str:
    """:return: the first task type whose keywords occur in the prompt (both ends of a long one), else ``chat``."""
    scanned = _both_ends(text)
    return next((name for name, (pattern, _) in _TASK_TYPES.items() if pattern.search(scanned)), "chat")


class TaskTypeTable:
    """Task type guessed from keywords -> a fixed price tier: the hand-written routing table of common practice.

    The first operating point is the table as written; the others move every type up or down by one or two tiers.
    """

    shifts = (0, -2, -1, 1, 2)
    n_tiers = 3

    def fit(self, requests: Requests, score: FloatArray, cost: FloatArray) -> Self:
        """Learn which model serves a tier, and the means per guessed type."""
        self.models_ = tier_models(score, cost, self.n_tiers)
        self.table_ = GroupTable().fit([guess_task_type(text) for text in requests.texts], score, cost)
        return self

    def predict(self, requests: Requests) -> Prediction:
        """Guess the type of each request and look its tier up."""
        check_fitted(self, "table_")
        types = [guess_task_type(text) for text in requests.texts]
        means = self.table_.predict(types)
        tiers = np.array([0 if name == "chat" else _TASK_TYPES[name][1] for name in types], dtype=np.intp)
        shifted = np.clip(tiers[None, :] + np.array(self.shifts)[:, None], 0, self.n_tiers - 1)
        return Prediction(means.p, means.c, self.models_[shifted])


def tier_models(score: FloatArray, cost: FloatArray, n_tiers: int) -> IntArray:
    """The model of each price tier: even quantiles of price among models that no other beats in both cost and score.

    A person who writes such a table leaves out a model that is dearer and worse than another; so does this.

    :param score: (n, m) training scores.
    :param cost: (n, m) training costs.
    :param n_tiers: number of tiers, at least 2.
    :return: (n_tiers,) columns, from the cheapest to the best.
    """
    mean_cost, mean_score = cost_means(cost), column_means(score, -np.inf)
    by_price = np.lexsort((-mean_score, mean_cost))
    frontier: list[int] = []
    for model in by_price.tolist():
        if not frontier or mean_score[model] > mean_score[frontier[-1]]:
            frontier.append(model)
    places = np.rint(np.linspace(0, len(frontier) - 1, n_tiers)).astype(np.intp)
    return np.array(frontier, dtype=np.intp)[places]


def _both_ends(text: str) -> str:
    return text if len(text) <= 2 * _SCANNED else text[:_SCANNED] + "\n" + text[-_SCANNED:]


def _distinct(pattern: re.Pattern[str], text: str) -> int:
    return len({match.lower() for match in pattern.findall(text)})
