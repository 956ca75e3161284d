"""A simulated world with known truth: requests of this project's own making, and models that succeed by a known law.

Tests measure statistics against it, the demo trains on it, and it makes tables of any size::

    python -m training.simulate --requests 600 --out data/example_outcomes.csv --seed 7

P(success) follows the two-parameter logistic model of item response theory (Birnbaum 1968)::

    P = sigmoid(discrimination * (ability[model, task] - difficulty[request]))

The difficulty of a request has a part that its text shows (what is asked, how many demands, how long the numbers are)
and a hidden part that no router can see, so the best possible router is neither blind nor an oracle.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from training.outcome_columns import FloatArray, IntArray, Prompt
from training.outcome_table import OutcomeTable, write_table
from training.request_templates import TASKS
from training.request_writer import LEVELS, write_request

SEGMENTS = ("free", "pro", "enterprise")
SEGMENT_SHARES = (0.6, 0.3, 0.1)
NEW_SESSION = 0.8  # probability that a request opens a session; the others continue the one before
START = 1_767_225_600.0  # 2026-01-01 00:00 UTC
SECONDS_BETWEEN_REQUESTS = 90.0
LEVEL_EFFECT = 0.4  # logits per demand
ASK_EFFECT = 1.2  # logits from a task's easiest ask to its hardest
CHARACTERS_PER_TOKEN = 4.0

Policy = Callable[[FloatArray], FloatArray]


@dataclass(frozen=True)
class SimulatedModel:
    """A made-up model.

    :param ability: on the scale of difficulty, in logits; an average request has difficulty 0.
    :param verbosity: tokens it writes, as a multiple of the task's usual answer.
    """

    name: str
    ability: float
    input_usd_per_mtok: float
    output_usd_per_mtok: float
    verbosity: float = 1.0
    tokens_per_s: float = 80.0
    first_token_s: float = 0.5


DEFAULT_MODELS = (
    SimulatedModel("acme/small", -0.1, 0.10, 0.40, verbosity=0.8, tokens_per_s=180.0, first_token_s=0.2),
    SimulatedModel("acme/medium", 0.6, 0.80, 3.20, tokens_per_s=110.0, first_token_s=0.4),
    SimulatedModel("acme/large", 1.5, 5.00, 25.00, verbosity=1.1, tokens_per_s=60.0, first_token_s=0.9),
    SimulatedModel("other/mini", 0.1, 0.15, 0.60, verbosity=1.3, tokens_per_s=150.0, first_token_s=0.3),
    SimulatedModel("other/max", 1.2, 3.00, 15.00, verbosity=1.2, tokens_per_s=70.0, first_token_s=0.8),
)


class Sample(NamedTuple):
    """A table and the truth behind it.

    ``p_success`` is (n_requests, n_models), columns in the order of ``table.models``. ``visible`` and ``hidden`` are
    the (n_requests,) parts of the difficulty, in logits.
    """

    table: OutcomeTable
    p_success: FloatArray
    visible: FloatArray
    hidden: FloatArray


class _Requests(NamedTuple):
    """Requests before they are tried: all arrays (n_requests,)."""

    prompts: list[Prompt]
    task: IntArray
    session: IntArray
    segment: IntArray
    level: IntArray
    visible: FloatArray
    hidden: FloatArray
    seconds: FloatArray


class World:
    """Models with fixed abilities, and an endless supply of requests.

    :param seed: fixes each model's strengths and weaknesses by task, and with the seed of a sample all it holds.
    :param models: distinct names.
    :param discrimination: how sharply success depends on ability minus difficulty.
    :param hidden_sd: standard deviation of the part of difficulty that texts do not show, in logits.
    :param ability_spread: standard deviation of a model's ability between tasks, in logits.
    :raises ValueError: if there are no models or two of one name.
    """

    def __init__(
        self,
        seed: int = 0,
        models: Sequence[SimulatedModel] = DEFAULT_MODELS,
        *,
        discrimination: float = 1.7,
        hidden_sd: float = 0.8,
        ability_spread: float = 0.4,
    ) -> None:
        if not models or len({model.name for model in models}) != len(models):
            raise ValueError(f"expected models of distinct names; got {[model.name for model in models]}")
        self.seed = seed
        self.models = tuple(sorted(models, key=lambda model: model.name))
        self.discrimination = discrimination
        self.hidden_sd = hidden_sd
        shape = (len(self.models), len(TASKS))
        overall = np.asarray([model.ability for model in self.models])
        self.ability: FloatArray = overall[:, None] + np.random.default_rng([seed, 0]).normal(
            0.0, ability_spread, shape
        )

    def sample(
        self, n_requests: int, models_per_request: int | None = None, policy: Policy | None = None, seed: int = 0
    ) -> Sample:
        """Requests and what models did on them.

        :param models_per_request: how many models try each request; None for all.
        :param policy: (n_requests,) visible difficulty -> (n_requests, n_models) choice probabilities, rows adding up
            to 1, columns in the order of ``self.models``; None for all alike. ``propensity`` is the probability that
            the model is among those tried.
        :param seed: different seeds give different requests of the same world, with different ids.
        :raises ValueError: if ``models_per_request`` is not in 1..n_models or the policy's result is unusable.
        """
        rng = np.random.default_rng([self.seed, 1, seed])
        requests = self._requests(n_requests, rng, seed)
        difficulty = requests.visible + requests.hidden
        logit = self.discrimination * (self.ability.T[requests.task] - difficulty[:, None])
        p_success: FloatArray = 1.0 / (1.0 + np.exp(-logit))
        inclusion = self._inclusion(requests.visible, models_per_request, policy)
        request, model = np.nonzero(_choose(inclusion, rng))
        table = self._table(requests, request, model, p_success, inclusion, seed, rng)
        return Sample(table, p_success, requests.visible, requests.hidden)

    def price_aware(self, visible: FloatArray) -> FloatArray:
        """A policy like those behind real logs: cheap models for what looks easy, dear ones for what looks hard.

        :param visible: (n_requests,) visible difficulty.
        :return: (n_requests, n_models) choice probabilities, none below 0.02.
        """
        price = np.log([model.output_usd_per_mtok for model in self.models])
        spread = price.std() or 1.0  # equal prices leave nothing to prefer
        preference = np.exp(visible[:, None] * (price - price.mean()) / spread)
        share = preference / preference.sum(axis=1, keepdims=True)
        floor = min(0.02, 1.0 / len(self.models))
        mixed: FloatArray = floor + (1.0 - floor * len(self.models)) * share
        return mixed

    def _requests(self, n: int, rng: np.random.Generator, seed: int) -> _Requests:
        opens = rng.random(n) < NEW_SESSION
        opens[:1] = True
        session = np.cumsum(opens) - 1
        n_sessions = int(session.max(initial=-1)) + 1
        task = rng.integers(0, len(TASKS), n_sessions)[session]
        segment = rng.choice(len(SEGMENTS), n_sessions, p=SEGMENT_SHARES)[session]
        level = rng.integers(0, LEVELS, n)
        n_asks = np.asarray([len(template.asks) for template in TASKS])[task]
        ask = (rng.random(n) * n_asks).astype(np.int64)
        base = np.asarray([template.base_difficulty for template in TASKS])[task]
        visible = base + LEVEL_EFFECT * (level - (LEVELS - 1) / 2) + ASK_EFFECT * (ask / (n_asks - 1) - 0.5)
        # Half the hidden variance belongs to the session: that is why requests of one session share a fold.
        shared = rng.normal(0.0, 1.0, n_sessions)[session]
        hidden = self.hidden_sd * np.sqrt(0.5) * (shared + rng.normal(0.0, 1.0, n))
        seconds = START + np.cumsum(rng.exponential(SECONDS_BETWEEN_REQUESTS, n))
        draw = random.Random(f"{self.seed}/{seed}")
        asked = zip(task.tolist(), ask.tolist(), level.tolist(), strict=True)
        prompts = [write_request(TASKS[t], a, lv, draw) for t, a, lv in asked]
        return _Requests(prompts, task, session, segment, level, visible, hidden, seconds)

    def _inclusion(self, visible: FloatArray, k: int | None, policy: Policy | None) -> FloatArray:
        n, m = len(visible), len(self.models)
        if k is not None and not 1 <= k <= m:
            raise ValueError(f"models_per_request is {k}; expected 1..{m} or None")
        if k is None or k == m:
            return np.ones((n, m))
        if policy is None:
            return np.full((n, m), k / m)
        choice = np.asarray(policy(visible), dtype=np.float64)
        if choice.shape != (n, m) or not (choice > 0).all() or not np.allclose(choice.sum(axis=1), 1.0):
            raise ValueError(f"a policy must give ({n}, {m}) probabilities above 0 with rows that add up to 1")
        return _inclusion_probabilities(choice, k)

    def _table(
        self,
        requests: _Requests,
        request: IntArray,
        model: IntArray,
        p_success: FloatArray,
        inclusion: FloatArray,
        seed: int,
        rng: np.random.Generator,
    ) -> OutcomeTable:
        price_in, price_out, verbosity, speed, wait = self._traits()[:, model]
        difficulty = (requests.visible + requests.hidden)[request]
        task = requests.task[request]
        is_agent = np.asarray([template.name == "agent" for template in TASKS])[task]
        turns = 1.0 + np.where(is_agent, rng.poisson(np.clip(3.0 + 1.5 * difficulty, 0.5, 20.0)), 0.0)
        usual = np.asarray([template.output_tokens for template in TASKS])[task]
        spread = rng.normal(0.0, 0.35, len(request))
        written = np.round(turns * usual * verbosity * np.exp(0.25 * difficulty + spread)) + 1.0
        prompt_tokens = np.asarray([_length(prompt) for prompt in requests.prompts])[request] / CHARACTERS_PER_TOKEN
        # Each turn reads again what the turns before it wrote.
        read = np.ceil(turns * prompt_tokens + written * (turns - 1.0) / 2.0) + 8.0
        ids = [f"sim-{self.seed}-{seed}-{i}" for i in range(len(requests.prompts))]
        return OutcomeTable(
            request_ids=ids,
            prompts=requests.prompts,
            task=[TASKS[t].name for t in requests.task.tolist()],
            source=["simulated"] * len(ids),
            group=[f"session-{self.seed}-{seed}-{s}" for s in requests.session.tolist()],
            segment=[SEGMENTS[s] for s in requests.segment.tolist()],
            models=tuple(spec.name for spec in self.models),
            request=request.astype(np.int32),
            model=model.astype(np.int16),
            score=(rng.random(len(request)) < p_success[request, model]).astype(np.float64),
            cost_usd=np.round((read * price_in + written * price_out) / 1e6, 9),
            input_tokens=read,
            output_tokens=written,
            latency_s=np.round(turns * wait + written / speed * np.exp(rng.normal(0.0, 0.1, len(request))), 3),
            turns=turns,
            tool_calls=turns - 1.0,
            timestamp=np.round(requests.seconds, 0)[request],
            propensity=inclusion[request, model],
        )

    def _traits(self) -> FloatArray:
        return np.asarray(
            [
                (m.input_usd_per_mtok, m.output_usd_per_mtok, m.verbosity, m.tokens_per_s, m.first_token_s)
                for m in self.models
            ]
        ).T


def _inclusion_probabilities(choice: FloatArray, k: int) -> FloatArray:
    """Probability of each model to be among k: proportional to ``choice``, none above 1, rows adding up to k."""
    inclusion: FloatArray = np.zeros_like(choice)
    for _ in range(choice.shape[1]):  # a model that reaches 1 leaves its excess to the others, which may reach 1 too
        sure = inclusion >= 1.0
        free = np.where(sure, 0.0, choice)
        rest = (k - sure.sum(axis=1, keepdims=True)) / free.sum(axis=1, keepdims=True)
        inclusion = np.where(sure, 1.0, np.minimum(free * rest, 1.0))
    return inclusion


def _choose(inclusion: FloatArray, rng: np.random.Generator) -> IntArray:
    """Systematic sampling (Madow 1949) in an order shuffled per row: exactly these inclusion probabilities, fixed size.

    :return: (n_requests, n_models) 0 or 1.
    """
    order = np.argsort(rng.random(inclusion.shape), axis=1)
    reached = np.cumsum(np.take_along_axis(inclusion, order, axis=1), axis=1)
    reached[:, -1] = np.round(reached[:, -1])  # exactly k, whatever the additions lost
    ticks = np.ceil(reached - rng.random((len(inclusion), 1)))
    chosen = np.diff(ticks, axis=1, prepend=0.0)
    out: IntArray = np.zeros(inclusion.shape, dtype=np.int64)
    np.put_along_axis(out, order, chosen.astype(np.int64), axis=1)
    return out


def _length(prompt: Prompt) -> int:
    if isinstance(prompt, str):
        return len(prompt)
    return sum(len(message["content"] or str(message.get("tool_calls", ""))) for message in prompt)


def main(argv: Sequence[str] | None = None) -> int:
    """Write a simulated outcome table."""
    parser = argparse.ArgumentParser(prog="python -m training.simulate", description=main.__doc__)
    parser.add_argument("--requests", type=int, default=600, help="number of requests (default 600)")
    parser.add_argument("--out", required=True, help="file to write: .parquet, .csv or .jsonl")
    parser.add_argument("--seed", type=int, default=7, help="seed of the world (default 7)")
    parser.add_argument("--models-per-request", type=int, help="models that try each request (default: all)")
    parser.add_argument("--policy", choices=("uniform", "price_aware"), default="uniform", help="who chooses them")
    args = parser.parse_args(argv)
    world = World(args.seed)
    policy = world.price_aware if args.policy == "price_aware" else None
    table = world.sample(args.requests, args.models_per_request, policy).table
    write_table(table, args.out)
    sys.stdout.write(f"{args.out}: {table.n_requests} requests, {table.n_rows} rows, {len(table.models)} models\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
