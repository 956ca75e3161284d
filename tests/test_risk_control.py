"""Risk control: the level is kept where a t-test's is not, and little power is lost for it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from router_ml.errors import TableError
from training.metrics import BoolArray, FloatArray
from training.risk_control import first_failure, gains_shown, rows_needed

LEVEL = 0.1


def paired(n: int, k: int, differ: float, gain: float, target: float = 0.95, seed: int = 0) -> FloatArray:
    """Gains of a policy that differs from its reference (right in 80 %) in some rows, with a known expectation.

    :param differ: share of rows on which one of the two is right and the other is not.
    """
    lost = (differ + (1.0 - target) * 0.8 - gain) / 2
    won = max(0.0, differ - lost)
    lost = won + (1.0 - target) * 0.8 - gain
    u = np.random.default_rng(seed).random((n, k))
    reference = (u < lost) | ((u >= lost + won) & (u < won + 0.8))
    policy = (u >= lost) & (u < won + 0.8)
    return policy - target * reference


def t_test(gain: FloatArray, level: float) -> BoolArray:
    return np.asarray(stats.ttest_1samp(gain, 0.0, alternative="greater").pvalue <= level)


def by_hand(gain: list[float], bound: float, level: float) -> bool:
    """The same bets, one at a time."""
    wealth, squares = 1.0, 0.25
    for i, raw in enumerate(gain):
        x = raw / bound
        variance = squares / (i + 1)
        stake = math.sqrt(2.0 * math.log(1.0 / (level * wealth)) / ((len(gain) - i) * variance))
        wealth *= 1.0 + min(stake, 0.9) * x
        if wealth >= 1.0 / level:
            return True
        squares += x * x
    return False


@pytest.mark.parametrize(("n", "differ"), [(60, 0.03), (60, 0.1), (200, 0.03), (200, 0.3), (800, 0.1)])
def test_a_worthless_gain_is_seldom_taken_for_one(n: int, differ: float) -> None:
    k = 3000
    wrong = gains_shown(paired(n, k, differ, 0.0), 0.95, LEVEL).mean()
    assert wrong <= LEVEL + 3 * math.sqrt(LEVEL * (1 - LEVEL) / k)


def test_a_t_test_is_wrong_where_policies_seldom_differ() -> None:
    gain = paired(60, 3000, 0.03, 0.0)
    assert abs(gain.mean()) < 0.002
    assert t_test(gain, LEVEL).mean() > 2 * LEVEL > 4 * gains_shown(gain, 0.95, LEVEL).mean()


@pytest.mark.parametrize(("n", "differ", "gain"), [(1000, 0.3, 0.035), (2000, 0.1, 0.014)])
def test_a_real_gain_is_found_nearly_as_often_as_by_a_t_test(n: int, differ: float, gain: float) -> None:
    rows = paired(n, 1000, differ, gain)
    found = gains_shown(rows, 0.95, LEVEL).mean()
    assert 0.85 * t_test(rows, LEVEL).mean() < found < 0.99


@given(
    arrays(np.float64, st.tuples(st.integers(1, 40), st.just(3)), elements=st.floats(-1, 1)),
    st.sampled_from([0.05, 0.1, 0.5]),
    st.sampled_from([1.0, 2.0]),
)
def test_it_bets_as_worked_out_by_hand(gain: FloatArray, level: float, bound: float) -> None:
    shown = gains_shown(gain, bound, level)
    assert shown.tolist() == [by_hand(gain[:, k].tolist(), bound, level) for k in range(3)]
    np.testing.assert_array_equal(gains_shown(4.0 * gain, 4.0 * bound, level), shown)


def test_a_loss_beyond_the_bound_is_refused() -> None:
    with pytest.raises(TableError, match=r"a row loses 1; expected at most 0\.95"):
        gains_shown(np.array([[0.1], [-1.0]]), 0.95, LEVEL)


@given(st.lists(st.booleans(), max_size=8))
def test_testing_stops_at_the_first_failure(shown: list[bool]) -> None:
    count = first_failure(shown)
    assert all(shown[:count]) and (count == len(shown) or not shown[count])


def test_the_number_of_rows_that_would_do_is_of_the_right_size() -> None:
    gain = paired(5000, 1, 0.2, 0.03)[:, 0]
    n = int(rows_needed(gain, 0.95, LEVEL))
    found = gains_shown(paired(n, 1000, 0.2, 0.03, seed=1), 0.95, LEVEL).mean()
    assert 0.6 < found < 0.9
    assert rows_needed(-np.abs(gain), 0.95, LEVEL) == math.inf
    certain = np.full(10, 0.04)  # no noise: the stake alone decides how long it takes
    n = int(rows_needed(certain, 0.95, LEVEL))
    assert gains_shown(np.full((round(1.3 * n), 1), 0.04), 0.95, LEVEL).all()
    assert not gains_shown(np.full((round(0.7 * n), 1), 0.04), 0.95, LEVEL).any()
