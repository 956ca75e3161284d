"""Where choices go wrong, in both directions and never net: under-routing and over-routing.

On a row where every priced model has score and cost it is known what each other choice would have done. A choice is

- *right*: it succeeded, and no cheaper model would have;
- *over-routed*: it succeeded, though a cheaper model would have too: money was wasted;
- *under-routed*: it failed, and some other model would have succeeded: an answer was lost;
- *unavoidable*: it failed, as every model would have;
- *refused*: guards excluded every model, so none was called.

A router that errs as often one way as the other looks fine on average and is wrong twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np

from training.comparison import REFUSED, Comparison, interval_dict
from training.cost_quality import CostQualityCurve, lowest_loss, paired_difference, resamples
from training.metrics import FloatArray, IntArray
from training.prediction import Prediction

MIXTURE, AT_PRICE = "mixture_at_router_cost", "router_at_failure_cost"
NOTES = {
    "routing_errors": (
        "each choice of the default rule beside what every other model would have done; right, over_routed, "
        "under_routed, unavoidable and refused add up to n; shares are of all n requests, amounts are USD; intervals "
        "are 95 % percentile bootstraps (groups drawn whole), and [0, 0] behind no error at all is not proof of none"
    ),
    "routing_errors.over_routed": (
        "succeeded though a cheaper model would have too; excess_usd is what it cost more than the cheapest success"
    ),
    "routing_errors.under_routed": (
        "failed though some model would have succeeded; more_usd is what the cheapest success would have cost more, "
        "less_usd what it would have cost less; n_no_dearer counts those where it was no dearer"
    ),
    f"routing_errors.baselines.{MIXTURE}": (
        "the best mixture, in hindsight, of two single models that costs what the router does, drawn at random: "
        "expected figures; absent where the router is cheaper than every model"
    ),
    f"routing_errors.{AT_PRICE}": (
        "the router's predictions under the rule of lowest expected loss at failure_cost_usd, without guards"
    ),
    "loss": (
        "mean USD per request, with failure_cost_usd for each failure: under_routing and over_routing are the parts "
        "that another choice of model would have saved, unavoidable and refused the other failures, and "
        "other_spend the rest of what the calls cost; the parts add up to total"
    ),
}


class RoutingErrors(NamedTuple):
    """What is known of the choices on n requests, each (n,); a share in [0, 1] where models are drawn at random.

    :param no_dearer: under-routed, though a model that is no dearer would have succeeded.
    :param more_usd: what the cheapest success would have cost more than the failure that was paid for, else 0.
    :param less_usd: what it would have cost less. :param excess_usd: what an over-routed request cost too much.
    :param paid_usd: what the call cost.
    """

    under_routed: FloatArray
    over_routed: FloatArray
    unavoidable: FloatArray
    refused: FloatArray
    no_dearer: FloatArray
    more_usd: FloatArray
    less_usd: FloatArray
    excess_usd: FloatArray
    paid_usd: FloatArray

    def take(self, rows: Any) -> Self:
        """:return: the given rows."""
        return type(self)(*(part[rows] for part in self))

    @classmethod
    def of(cls, success: FloatArray, cost: FloatArray, picks: IntArray) -> Self:
        """Judge choices by what every model would have done.

        :param success: (n, m), 1.0 or 0.0. :param cost: (n, m) USD. :param picks: (n,) model, ``REFUSED`` where none.
        """
        rows = np.arange(len(picks))
        called, won = picks != REFUSED, success > 0
        cheapest = np.where(won, cost, np.inf).min(axis=1)  # infinite where no model succeeds
        paid = np.where(called, cost[rows, picks], 0.0)
        right, avoidable = called & won[rows, picks], np.isfinite(cheapest)
        under, over = called & ~right & avoidable, right & (cheapest < paid)
        gap = np.where(avoidable, cheapest, paid) - paid
        return cls(*(np.asarray(part, dtype=np.float64) for part in (
            under, over, called & ~avoidable, ~called, under & (gap <= 0), np.where(under, np.maximum(gap, 0), 0),
            np.where(under, np.maximum(-gap, 0), 0), np.where(over, -gap, 0), paid,
        )))  # fmt: skip

    def loss_usd(self, failure_cost_usd: float) -> FloatArray:
        """(n,) cost of the calls and of the failures; a request that was refused has failed."""
        return self.paid_usd + failure_cost_usd * (self.under_routed + self.unavoidable + self.refused)


def routing_errors(
    found: Comparison, success: FloatArray, prediction: Prediction, tasks: Sequence[str | None], *,
    failure_cost_usd: float | None = None, n_boot: int = 1000, seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """Report the errors of a router and its baselines, each at its default rule, with intervals.

    :param found: the comparison; its rows are the n requests and its models the m columns here.
    :param success: (n, m), 1.0 or 0.0. :param prediction: the router's own, (n, m). :param tasks: n names or None.
    :param failure_cost_usd: price of a failure: adds the loss in its parts, and what the router would choose by it.
    :param n_boot: resamples, groups drawn whole.
    :return: JSON-ready; ``NOTES`` says what the figures are.
    """
    curve = found.router.curve
    group = np.arange(curve.n) if curve.group is None else curve.group
    router = RoutingErrors.of(success, curve.cost, found.router.picks)
    others = {name: RoutingErrors.of(success, curve.cost, one.picks) for name, one in found.baselines.items()}
    others |= _mixture(success, curve, float(router.paid_usd.mean()))
    if failure_cost_usd is not None:
        picks = lowest_loss(prediction.p, prediction.c, failure_cost_usd)
        others[AT_PRICE] = RoutingErrors.of(success, curve.cost, picks)
    rates = {name: _rates(one, failure_cost_usd) for name, one in {"router": router, **others}.items()}
    samples = _resampled(rates, group, n_boot, seed)
    out: dict[str, Any] = {
        name: {
            **_figures(one, samples[name], failure_cost_usd),
            "difference": _differences(rates["router"], rates[name], samples["router"], samples[name]),
        }
        for name, one in others.items()
    }
    at_price = {AT_PRICE: out.pop(AT_PRICE)} if AT_PRICE in out else {}
    own = _figures(router, samples["router"], failure_cost_usd)
    by_task = _by_task(router, tasks, group, failure_cost_usd, n_boot, seed)
    return {
        "n": curve.n, "failure_cost_usd": failure_cost_usd, "router": {**own, "by_task": by_task}, **at_price,
        "baselines": out,
    }  # fmt: skip


def contestants(report: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Name -> figures of everybody in a report of ``routing_errors``, the router first."""
    own = {name: report[name] for name in ("router", AT_PRICE) if name in report}
    return {**own, **report["baselines"]}


def _mixture(success: FloatArray, curve: CostQualityCurve, budget: float) -> dict[str, RoutingErrors]:
    """The mixture of two single models that costs ``budget`` at most and is best; none if every model costs more."""
    cost, quality = curve.singles().T
    best: tuple[float, float, int, int] | None = None
    for low in np.flatnonzero(cost <= budget).tolist():
        for high in range(cost.size):
            share = 0.0 if cost[high] <= budget else (budget - cost[low]) / (cost[high] - cost[low])
            reached = (1 - share) * quality[low] + share * quality[high]
            if best is None or reached > best[0]:
                best = (float(reached), float(share), low, high)
    if best is None:
        return {}
    _, share, low, high = best
    ends = [RoutingErrors.of(success, curve.cost, np.full(curve.n, model, dtype=np.intp)) for model in (low, high)]
    return {MIXTURE: RoutingErrors(*((1 - share) * a + share * b for a, b in zip(*ends, strict=True)))}


def _rates(errors: RoutingErrors, failure_cost_usd: float | None) -> dict[str, FloatArray]:
    """What gets an interval, (n,) each."""
    names = ("under_routed", "over_routed", "unavoidable", "more_usd", "excess_usd")
    rates: dict[str, FloatArray] = {name: getattr(errors, name) for name in names}
    return rates if failure_cost_usd is None else {**rates, "loss_usd": errors.loss_usd(failure_cost_usd)}


def _resampled(
    rates: Mapping[str, Mapping[str, FloatArray]], group: IntArray, n_boot: int, seed: int
) -> dict[str, dict[str, FloatArray]]:
    """(n_boot,) means of each rate; all on the same resamples, which makes any two a pair."""
    names = [(name, rate) for name, of in rates.items() for rate in of]
    table = np.column_stack([rates[name][rate] for name, rate in names])
    means = np.vstack([weights @ table for weights in resamples(group, n_boot, seed)])
    out: dict[str, dict[str, FloatArray]] = {name: {} for name in rates}
    for (name, rate), column in zip(names, means.T, strict=True):
        out[name][rate] = column
    return out


def _figures(
    errors: RoutingErrors, samples: Mapping[str, FloatArray], failure_cost_usd: float | None
) -> dict[str, Any]:
    def counted(name: str) -> dict[str, Any]:
        flags: FloatArray = getattr(errors, name)
        low, high = np.quantile(samples[name], [0.025, 0.975], method="inverted_cdf")
        return {"n": _number(flags), "share": float(flags.mean()), "low": float(low), "high": float(high)}

    def priced(name: str, flags: FloatArray) -> dict[str, Any]:
        amount: FloatArray = getattr(errors, name)
        low, high = np.quantile(samples[name], [0.025, 0.975], method="inverted_cdf")
        total, n = float(amount.sum()), float(flags.sum())
        return {
            f"{name}_per_error": total / n if n else None, f"{name}_per_request": float(amount.mean()),
            f"{name}_per_request_low": float(low), f"{name}_per_request_high": float(high), f"{name}_total": total,
        }  # fmt: skip

    under, over = errors.under_routed, errors.over_routed
    wrong = under + over + errors.unavoidable + errors.refused
    out = {
        "under_routed": {
            **counted("under_routed"), **priced("more_usd", under), "n_no_dearer": _number(errors.no_dearer),
            "less_usd_total": float(errors.less_usd.sum()),
        },
        "over_routed": {**counted("over_routed"), **priced("excess_usd", over)},
        "unavoidable": counted("unavoidable"),
        "n_refused": _number(errors.refused),
        "n_right": _number(1.0 - wrong),
    }  # fmt: skip
    return out if failure_cost_usd is None else {**out, "loss": _loss(errors, samples, failure_cost_usd)}


def _loss(errors: RoutingErrors, samples: Mapping[str, FloatArray], failure_cost_usd: float) -> dict[str, float]:
    low, high = np.quantile(samples["loss_usd"], [0.025, 0.975], method="inverted_cdf")
    excess = float(errors.excess_usd.mean())
    return {
        "under_routing_usd": failure_cost_usd * float(errors.under_routed.mean()),
        "over_routing_usd": excess,
        "unavoidable_usd": failure_cost_usd * float(errors.unavoidable.mean()),
        "refused_usd": failure_cost_usd * float(errors.refused.mean()),
        "other_spend_usd": float(errors.paid_usd.mean()) - excess,
        "total_usd": float(errors.loss_usd(failure_cost_usd).mean()),
        "total_usd_low": float(low),
        "total_usd_high": float(high),
    }


def _differences(
    router: Mapping[str, FloatArray], other: Mapping[str, FloatArray],
    router_samples: Mapping[str, FloatArray], other_samples: Mapping[str, FloatArray],
) -> dict[str, Any]:  # fmt: skip
    """Router minus the other, of each kind of error by itself."""
    return {
        rate: interval_dict(
            paired_difference(
                float(router[rate].mean()), float(other[rate].mean()), router_samples[rate], other_samples[rate],
                len(router[rate]),
            )
        )
        for rate in router
        if rate not in ("unavoidable", "more_usd")  # the first is no choice's doing, the second goes with the failures
    }  # fmt: skip


def _by_task(
    errors: RoutingErrors, tasks: Sequence[str | None], group: IntArray, failure_cost_usd: float | None, n_boot: int,
    seed: int,
) -> list[dict[str, Any]]:  # fmt: skip
    """A row per task, requests without one last under None."""
    out = []
    for task in [*sorted({name for name in tasks if name is not None}), None]:
        rows = np.flatnonzero([name == task for name in tasks])
        if rows.size:
            own, codes = errors.take(rows), np.unique(group[rows], return_inverse=True)[1]
            samples = _resampled({"": _rates(own, failure_cost_usd)}, codes, n_boot, seed)[""]
            out.append({"task": task, "n": rows.size, **_figures(own, samples, failure_cost_usd)})
    return out


def _number(flags: FloatArray) -> float:
    """How many; a whole number unless models are drawn at random."""
    n = float(flags.sum())
    return int(n) if n.is_integer() else n
