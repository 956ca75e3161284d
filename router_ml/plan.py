"""Plans: which model first, which next if the verifier rejects its answer, when to stop. Pure.

A plan is a sequence of models. Each is called in turn; the first answer that the verifier accepts is the answer, and
where it accepts none, the last one is. Calling one model after another is the problem of Pandora's boxes (Weitzman,
Econometrica 1979): open the box with the best index ``(value of success * P - cost) / P(stop)`` while that is above the
value of going straight to the end. His rule is optimal where boxes are independent. Models are not: after one was
rejected, the request is harder than thought. Here every probability is conditioned on that, through the hidden
difficulty of ``dependence``, and the best sequence is found by looking at all of them. The index stays as the rule for
known difficulty, where boxes *are* independent; it shortens long lists of candidates and bounds what any plan reaches.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from router_ml.dependence import Dependence
from router_ml.request import VerifierSpec

Array = NDArray[np.float64]
Ints = NDArray[np.intp]

MAX_STAGES = 4
MAX_CANDIDATES = 12  # above, candidates that no clairvoyant would call are left out first
ALL_STAGES = 5  # up to so many candidates, plans may call all of them
TIE = 1e-6  # a probability is what was wanted up to the rounding of the table of ``dependence``


class NothingFitsError(ValueError):
    """Not even one candidate, with the check of its answer, is within the budget and the time of the goal."""

    def __init__(self) -> None:
        super().__init__("no candidate is within the budget and the time of the goal")


class Goal(NamedTuple):
    """What a plan is for.

    :param failure_cost_usd: if given, the plan minimises expected cost plus this times the probability of failure.
    :param min_quality: else, it is the cheapest whose probability of success is at least this; or, if none reaches it,
        the likeliest, and of equally likely ones the cheapest.
    :param budget_usd: most that all stages together may be expected to cost. :param max_latency_s: or to take.
    :param last_resort: index in the pool of a model that every plan must hold, if it is a candidate and within budget
        and time, so that no rejected answer is the end before that one was asked. None: a plan ends where it is best.
    """

    failure_cost_usd: float | None = None
    min_quality: float = 0.0
    budget_usd: float | None = None
    max_latency_s: float | None = None
    last_resort: int | None = None


class Plan(NamedTuple):
    """Models by their index in the pool, in the order of calling.

    :param p_success: probability that the answer that the plan ends with is right.
    :param expected_cost_usd: expected cost of all calls and checks.
    :param reach: for each stage, the probability that it is called.
    :param p_stage: for each stage, P(its answer is right | it is called).
    """

    models: tuple[int, ...]
    p_success: float
    expected_cost_usd: float
    reach: tuple[float, ...]
    p_stage: tuple[float, ...]

    def loss(self, failure_cost_usd: float) -> float:
        """Expected cost in USD where a failure costs that much."""
        return self.expected_cost_usd + (1.0 - self.p_success) * failure_cost_usd


class Plans(NamedTuple):
    """The best plan, and the best of those that begin with another model; None where there is no other."""

    best: Plan
    second: Plan | None


class Candidates:
    """Models that a plan for one request may be made of.

    :param models: (n,) indices in the pool. :param p: (n,) P(success). :param cost: (n,) expected USD of a call.
    :param verifier: how far the check of the answer can be trusted, what it costs.
    :param strongest: P(success) of the strongest model of the pool, which need not be a candidate; None: of these.
    :param latency_s: (n,) expected seconds of a call, None where unknown, which counts as none.
    :param retry_correlation: probability that a second answer of the same model is as right or wrong as its first, and
        judged alike; 1: calling it again is pointless, and no plan does.
    """

    def __init__(
        self, models: Sequence[int], p: Sequence[float], cost: Sequence[float], verifier: VerifierSpec,
        dependence: Dependence, *, strongest: float | None = None, latency_s: Sequence[float | None] | None = None,
        retry_correlation: float = 1.0,
    ) -> None:  # fmt: skip
        self.models = tuple(models)
        self.cost = np.array(cost, dtype=np.float64) + verifier.cost_usd
        seconds = [0.0] * len(self.models) if latency_s is None else [s or 0.0 for s in latency_s]
        self.latency_s = np.array(seconds) + verifier.latency_s
        self.p = np.array(p, dtype=np.float64)
        self.right, self.weights = dependence.given_difficulty(self.models, self.p, strongest)
        self.accept = verifier.true_accept, verifier.false_accept
        self.retry_correlation = retry_correlation

    def __len__(self) -> int:
        return len(self.models)

    def take(self, kept: Sequence[int]) -> Candidates:
        """Some of the candidates, by position."""
        out = object.__new__(Candidates)
        rows = list(kept)
        out.__dict__ |= self.__dict__ | {
            "models": tuple([self.models[i] for i in rows]), "cost": self.cost[rows],
            "latency_s": self.latency_s[rows], "p": self.p[rows], "right": self.right[rows],
        }  # fmt: skip
        return out


def best_plans(
    candidates: Candidates, goal: Goal, *, first: int | None = None, max_stages: int | None = None
) -> Plans:  # fmt: skip
    """The best plan, by looking at every sequence of models.

    :param max_stages: most calls in a sequence; None: ``MAX_STAGES``, or as many as there are candidates up to
        ``ALL_STAGES``.
    :param first: index in the pool of the model that must be called first; None: any.
    :raises NothingFitsError: if no single candidate is within the goal's budget and time.
    """
    if len(candidates) > MAX_CANDIDATES:  # what cannot be called takes no place on the shortlist
        candidates = candidates.take(_within_limits(candidates, goal))
        if not len(candidates):
            raise NothingFitsError
    if len(candidates) > MAX_CANDIDATES:
        candidates = candidates.take(shortlist(candidates, goal, keep=(first, goal.last_resort)))
    return Search(candidates, max_stages).best(goal, first=first)


class _Sequences(NamedTuple):
    """All sequences of models up to a length: a prefix, whose answers are rejected, and a last model.

    Letters 0..n - 1 are the models, n..2n - 1 a second call of each. Arrays over prefixes (N,), shortest first.
    """

    parent: tuple[Ints, ...]  # per length: the prefix one shorter, by its position among those of that length
    last: tuple[Ints, ...]  # per length: its last letter
    blocked: Array  # (N, letters) infinity where the letter may not end the sequence, else 0
    first: Ints  # (N, letters) first model of each sequence
    holds: NDArray[np.bool_]  # (n, N, letters) whether the model is in the sequence

    def growth(self) -> list[tuple[Ints, Ints] | tuple[None, None]]:
        """For prefixes of each length, how those one longer grow of them; nothing grows of the longest."""
        return [*zip(self.parent, self.last, strict=True), (None, None)]


@cache
def _sequences(n: int, max_stages: int, retries: bool) -> _Sequences:
    letters = 2 * n if retries else n
    level: list[tuple[int, ...]] = [()]
    parents, lasts = [], []
    prefixes: list[tuple[int, ...]] = [()]
    for _ in range(max_stages - 1):
        grown = [(i, (*word, a)) for i, word in enumerate(level) for a in range(letters) if _may_follow(word, a, n)]
        if not grown:
            break
        parents.append(np.array([i for i, _ in grown], dtype=np.intp))
        level = [word for _, word in grown]
        lasts.append(np.array([word[-1] for word in level], dtype=np.intp))
        prefixes += level
    allowed = np.array([[_may_follow(word, a, n) for a in range(letters)] for word in prefixes])
    first = np.array([[(word[0] if word else a) % n for a in range(letters)] for word in prefixes], dtype=np.intp)
    within = np.array([[model in {a % n for a in word} for word in prefixes] for model in range(n)])
    ends = np.arange(letters) % n == np.arange(n)[:, None]
    return _Sequences(
        tuple(parents), tuple(lasts), np.where(allowed, 0.0, np.inf), first, within[:, :, None] | ends[:, None, :]
    )


def _may_follow(word: tuple[int, ...], letter: int, n: int) -> bool:
    return letter not in word and (letter < n or letter - n in word)


class Search:
    """Cost and P(success) of every sequence: matrices (N, letters), prefix by last letter. Serves any number of goals.

    :param max_stages: see ``best_plans``.
    """

    def __init__(self, candidates: Candidates, max_stages: int | None = None) -> None:
        n, retries = len(candidates), candidates.retry_correlation < 1.0
        if max_stages is None:
            calls = 2 * n if retries else n  # that there are to make
            max_stages = max(n, min(calls, MAX_STAGES)) if n <= ALL_STAGES else MAX_STAGES
        self.candidates = candidates
        self.sequences = _sequences(n, max_stages, retries)
        self.accepted_right, self.last_right, self.rejected = _letters(candidates, retries)
        self.call_cost = np.concatenate([candidates.cost, candidates.cost]) if retries else candidates.cost
        self._reach: list[Array] = []
        u = candidates.weights[None]  # (N_d, nodes) P(all of the prefix rejected, difficulty)
        spent, earned = np.zeros(1), np.zeros(1)
        costs, rights = [], []
        for parent, last in self.sequences.growth():
            reach = u.sum(axis=1)
            self._reach.append(reach)
            costs.append(spent[:, None] + reach[:, None] * self.call_cost)
            rights.append(earned[:, None] + u @ self.last_right.T)
            if parent is not None:
                accepted = u @ self.accepted_right.T
                spent = costs[-1][parent, last]
                earned = earned[parent] + accepted[parent, last]
                u = u[parent] * self.rejected[last]
        self.cost = np.concatenate(costs)
        self.p_success = np.concatenate(rights)

    def best(self, goal: Goal, *, first: int | None = None) -> Plans:
        """The best plans for a goal; see ``best_plans``."""
        blocked, opening = self.blocked(goal), self.sequences.first
        if first is not None:
            blocked = np.where(opening == self.candidates.models.index(first), blocked, np.inf)
        best = self._least(goal, blocked)
        if best is None:
            raise NothingFitsError
        if first is not None or len(self.candidates) == 1:
            return Plans(self.plan(best), None)
        second = self._least(goal, np.where(opening == opening.flat[best], np.inf, blocked))
        return Plans(self.plan(best), None if second is None else self.plan(second))

    def blocked(self, goal: Goal) -> Array:
        """Infinity where a sequence is not allowed, else 0."""
        blocked = self.sequences.blocked
        for limit, each in _limits(self.candidates, goal):
            blocked = np.where(self._worst(each) <= limit, blocked, np.inf)
        if goal.last_resort in self.candidates.models:
            holding = np.where(self.sequences.holds[self.candidates.models.index(goal.last_resort)], blocked, np.inf)
            blocked = holding if np.isfinite(holding.min()) else blocked
        return blocked

    def _least(self, goal: Goal, blocked: Array) -> int | None:
        """Position of the best sequence that is not blocked; None if all are."""
        if goal.failure_cost_usd is not None:
            value = self.cost - goal.failure_cost_usd * self.p_success + blocked
        else:
            # with a perfect check every order of the same models is as likely: only its cost tells one from another
            likeliest = float((self.p_success - blocked).max())
            value = np.where(self.p_success >= min(goal.min_quality, likeliest) - TIE, self.cost + blocked, np.inf)
        least = int(np.argmin(value))
        return least if value.flat[least] < np.inf else None

    def _worst(self, each: Array) -> Array:
        """Sum over all stages, called or not."""
        each = np.concatenate([each, each]) if len(self.call_cost) > len(each) else each
        sums, out = np.zeros(1), []
        for parent, last in self.sequences.growth():
            out.append(sums[:, None] + each)
            if parent is not None:
                sums = out[-1][parent, last]
        return np.concatenate(out)

    def plan(self, where: int) -> Plan:
        """The sequence at a position of the matrices."""
        row, letter = divmod(where, self.cost.shape[1])
        depth = 0
        while row >= len(self._reach[depth]):
            row -= len(self._reach[depth])
            depth += 1
        letters = [letter]
        for level in range(depth, 0, -1):
            letters.append(int(self.sequences.last[level - 1][row]))
            row = int(self.sequences.parent[level - 1][row])
        letters.reverse()
        u, reach, p_stage = self.candidates.weights, [], []
        for a in letters:
            reach.append(float(u.sum()))
            p_stage.append(float(u @ self.last_right[a]) / max(reach[-1], 1e-300))
            u = u * self.rejected[a]
        models = tuple([self.candidates.models[a % len(self.candidates)] for a in letters])
        if depth == 0:  # exactly what the classifier said
            p = p_stage[0] = float(self.candidates.p[letter])
        else:
            p = min(1.0, float(self.p_success.flat[where]))
        return Plan(models, p, float(self.cost.flat[where]), tuple(reach), tuple(p_stage))


def _letters(candidates: Candidates, retries: bool) -> tuple[Array, Array, Array]:
    """Given difficulty, (letters, nodes): P(right and accepted), P(right) as the last answer, P(rejected)."""
    true_accept, false_accept = candidates.accept
    right = candidates.right
    rejected = right * (1.0 - true_accept) + (1.0 - right) * (1.0 - false_accept)
    accepted_right = right * true_accept
    if not retries:
        return accepted_right, right, rejected
    same = candidates.retry_correlation
    # of a rejected first answer, which the second then repeats; an answer that is never rejected is never repeated
    right_though_rejected = right * (1.0 - true_accept) / np.maximum(rejected, 1e-300)
    return (
        np.vstack([accepted_right, (1.0 - same) * accepted_right]),
        np.vstack([right, same * right_though_rejected + (1.0 - same) * right]),
        np.vstack([rejected, same + (1.0 - same) * rejected]),
    )


def _within_limits(candidates: Candidates, goal: Goal) -> list[int]:
    """Positions of the candidates that the goal's budget and time allow to be called alone."""
    fits = np.ones(len(candidates), dtype=bool)
    for limit, each in _limits(candidates, goal):
        fits &= each <= limit
    return [int(i) for i in np.flatnonzero(fits)]


def _limits(candidates: Candidates, goal: Goal) -> list[tuple[float, Array]]:
    """Each limit of the goal, with what every candidate takes of it."""
    pairs = ((goal.budget_usd, candidates.cost), (goal.max_latency_s, candidates.latency_s))
    return [(limit * (1.0 + 1e-9), each) for limit, each in pairs if limit is not None]


def shortlist(
    candidates: Candidates, goal: Goal, *, keep: Sequence[int | None] = (), limit: int = MAX_CANDIDATES
) -> list[int]:  # fmt: skip
    """Positions of the candidates that matter most, in their order.

    Those come first that Weitzman's rule calls first for some known difficulty and some price of a failure.

    :param keep: indices in the pool of models to keep whatever happens.
    """
    true_accept, false_accept = candidates.accept
    right = candidates.right
    stop = right * true_accept + (1.0 - right) * false_accept
    alone = right @ candidates.weights
    likeliest = int(np.argmax(alone))
    taken = [i for i, model in enumerate(candidates.models) if model in keep]
    taken += [likeliest, int(np.argmin(candidates.cost))]
    dear = float(candidates.cost[likeliest] / max(alone[likeliest], 1e-9))
    prices = [goal.failure_cost_usd] if goal.failure_cost_usd is not None else [dear * 4.0**k for k in range(-2, 4)]
    ranks = []
    for price in prices:
        end = (price * right - candidates.cost[:, None]).max(axis=0)
        index = (price * right * true_accept - candidates.cost[:, None]) / np.maximum(stop, 1e-12)
        worth = np.where(index >= end, index, -np.inf)
        order = np.argsort(np.argsort(-worth, axis=0), axis=0) + np.where(np.isinf(worth), len(right), 0)
        ranks.append(order)
        ranks.append(np.argsort(np.argsort(-(price * right - candidates.cost[:, None]), axis=0), axis=0))
    best_rank = np.min(np.concatenate(ranks, axis=1), axis=1)
    taken += [int(i) for i in np.lexsort((-alone, best_rank))]
    return sorted(list(dict.fromkeys(taken))[:limit])


def lower_bound(candidates: Candidates, failure_cost_usd: float) -> float:
    """What no plan's loss can be below: a clairvoyant who knows the difficulty, for whom Weitzman's rule is optimal.

    Expected over the nodes of difficulty, with any number of stages.

    :return: expected USD of calls, checks and failures.
    """
    true_accept, false_accept = candidates.accept
    total = 0.0
    for k, weight in enumerate(candidates.weights.tolist()):
        right = candidates.right[:, k]
        stop = right * true_accept + (1.0 - right) * false_accept
        gain = failure_cost_usd * right * true_accept - candidates.cost
        index = gain / np.maximum(stop, 1e-300)
        best = -np.inf
        for last, value in enumerate((failure_cost_usd * right - candidates.cost).tolist()):
            # backwards: a box is worth opening while its index is above the value of what follows (Weitzman 1979)
            for i in np.argsort(index, kind="stable").tolist():
                if i != last and index[i] > value:
                    value = gain[i] + (1.0 - stop[i]) * value
            best = max(best, value)
        total += weight * (failure_cost_usd - best)
    return total
