"""Curves, hulls and intervals against hand-computed cases, brute force, and simulated worlds with a known answer."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from router_ml.errors import TableError
from training.cost_quality import (
    bootstrap_samples,
    cheapest_likely,
    complete_grid,
    cost_at_quality,
    cost_quality_curve,
    hull_area,
    likeliest,
    paired_bootstrap,
    paired_difference,
    realised_curve,
    sweep_choices,
    upper_hull,
)
from training.metrics import FloatArray

NAN = math.nan
CENT = st.integers(0, 100).map(lambda cents: cents / 100)  # coarse, so that ties occur


def point_sets(min_size: int = 1) -> st.SearchStrategy[FloatArray]:
    return st.integers(min_size, 12).flatmap(lambda k: arrays(np.float64, (k, 2), elements=CENT))


# --- the cost-quality curve ---------------------------------------------------------------------------------------


def test_hull_of_hand_placed_points() -> None:
    points = np.array([[1, 0.2], [2, 0.7], [3, 0.6], [3, 0.75], [5, 0.9], [6, 0.9], [1, 0.1], [4, 0.8]])
    np.testing.assert_array_equal(upper_hull(points), [[1, 0.2], [2, 0.7], [5, 0.9]])
    on_one_line = np.array([[1, 0.25], [2, 0.5], [3, 0.75]])
    np.testing.assert_array_equal(upper_hull(on_one_line), on_one_line[[0, 2]])


@given(point_sets())
def test_hull_rises_is_concave_and_covers_every_point(points: FloatArray) -> None:
    hull = upper_hull(points)
    steps = np.diff(hull, axis=0)
    assert (steps > 0).all()
    slopes = steps[:, 1] / steps[:, 0]
    assert (np.diff(slopes) < 1e-9).all()
    heights = np.interp(points[:, 0], hull[:, 0], hull[:, 1])
    assert (heights >= points[:, 1] - 1e-12).all()
    assert {tuple(vertex) for vertex in hull} <= {tuple(point) for point in points}


def test_mixing_two_constants_is_the_straight_line_between_them() -> None:
    singles = np.array([[1.0, 0.4], [3.0, 0.8]])
    assert hull_area(singles, singles) == pytest.approx(0.6)
    # .75 * .8 = .6 lies half way, at cost 2 of 3
    assert cost_at_quality(singles, singles, 0.75) == pytest.approx(2 / 3)
    assert cost_at_quality(singles, singles, 1.0) == pytest.approx(1.0)


def test_area_goes_on_flat_and_starts_at_the_cheapest_single_model() -> None:
    singles = np.array([[1.0, 0.4], [5.0, 0.6]])
    router = np.array([[3.0, 0.8]])
    # rises from (1, .4) to (3, .8), then flat to 5
    assert hull_area(router, singles) == pytest.approx((0.6 * 2 + 0.8 * 2) / 4)
    # a point left of the range counts only inside it
    assert hull_area(np.array([[0.0, 0.7]]), singles) == pytest.approx(0.7)
    assert hull_area(router, np.array([[3.0, 0.4]])) == pytest.approx(0.8)


def test_cost_at_quality_of_the_edges() -> None:
    singles = np.array([[1.0, 0.4], [4.0, 0.8], [5.0, 0.8]])
    assert cost_at_quality(np.array([[2.0, 0.7]]), singles, 1.0) == math.inf
    assert cost_at_quality(np.array([[2.0, 0.9]]), singles, 0.25) == pytest.approx(1 / 4)  # the cheapest model does
    assert cost_at_quality(np.array([[2.0, 0.9]]), singles, 1.0) == pytest.approx((1 + 0.4 / 0.5) / 4)
    assert math.isnan(cost_at_quality(singles, np.array([[0.0, 0.9]]), 0.95))


@given(point_sets(), point_sets(2), point_sets(), st.floats(0.5, 1.0))
def test_more_operating_points_never_hurt(
    points: FloatArray, singles: FloatArray, more: FloatArray, fraction: float
) -> None:
    both = np.vstack([points, more])
    assert hull_area(both, singles) >= hull_area(points, singles) - 1e-12
    if singles[:, 0].min() > 0:
        assert cost_at_quality(both, singles, fraction) <= cost_at_quality(points, singles, fraction) + 1e-9


@settings(deadline=None)
@given(arrays(np.float64, (4, 3), elements=CENT), arrays(np.float64, (4, 3), elements=st.integers(1, 50).map(float)))
def test_sweep_finds_every_choice_that_a_fine_grid_of_lambdas_finds(p: FloatArray, c: FloatArray) -> None:
    swept = {tuple(choice) for choice in sweep_choices(p, c).tolist()}
    for weight in np.geomspace(1e-5, 2.0, 97):
        gain = p - weight * c
        best_two = np.sort(gain, axis=1)[:, -2:]
        if (np.diff(best_two) > 1e-9).all():  # at a tie either model is right
            assert tuple(gain.argmax(axis=1)) in swept


def test_sweep_runs_from_the_likeliest_to_the_cheapest_and_breaks_ties_sensibly() -> None:
    p, c = np.array([[0.9, 0.9, 0.2, 0.3]]), np.array([[5.0, 4.0, 1.0, 1.0]])
    choices = sweep_choices(p, c)
    assert choices[0, 0] == 1 and choices[-1, 0] == 3
    rng = np.random.default_rng(0)
    many = sweep_choices(rng.random((300, 5)), rng.random((300, 5)), n_lambda=60)
    assert many.shape == (60, 300)


def test_the_cheapest_model_likely_enough_is_called_else_the_given_one() -> None:
    p, c = np.array([[0.5, 0.8, 0.9], [0.1, 0.4, 0.3]]), np.array([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    assert cheapest_likely(p, c, 0.6, np.array([2, 2])).tolist() == [1, 2]
    assert cheapest_likely(p, c, 0.5, likeliest(p, c)).tolist() == [0, 1]  # reached exactly; not at all
    assert cheapest_likely(p, np.ones_like(c), 0.5, np.array([0, 0])).tolist() == [2, 0]  # equal price: the likelier


def test_curve_uses_complete_rows_only_and_says_how_many_it_left_out() -> None:
    score = np.array([[0.0, 1.0], [1.0, NAN], [1.0, 1.0]])
    cost = np.array([[1.0, 3.0], [1.0, 3.0], [2.0, 5.0]])
    curve = realised_curve(np.array([[0, 0, 0], [1, 1, 0]]), score, cost)
    assert (curve.n, curve.n_left_out) == (2, 1)
    np.testing.assert_allclose(curve.points(), [[1.5, 0.5], [2.5, 1.0]])
    np.testing.assert_allclose(curve.singles(), [[1.5, 0.5], [4.0, 1.0]])
    np.testing.assert_allclose(curve.points(np.array([[1.0, 0.0]])), [[[1.0, 0.0], [3.0, 1.0]]])


def test_a_grid_without_a_complete_row_is_refused_and_can_be_restricted() -> None:
    score = np.array([[0.0, 1.0, 1.0], [1.0, 1.0, NAN]])
    cost = np.array([[1.0, 3.0, NAN], [1.0, 3.0, NAN]])
    with pytest.raises(TableError, match="complete_grid"):
        realised_curve(np.zeros((1, 2), dtype=np.intp), score, cost)
    rows, models = complete_grid(score, cost)
    assert rows.tolist() == [True, True] and models.tolist() == [True, True, False]
    rows, models = complete_grid(score, np.full_like(cost, NAN))
    assert not rows.any() and not models.any()


def test_misshapen_or_unknown_predictions_are_refused() -> None:
    grid = np.ones((2, 2))
    with pytest.raises(TableError, match=r"\(n, m\)"):
        sweep_choices(np.ones((2, 3)), grid)
    with pytest.raises(TableError, match="c has 1 values that are not finite"):
        sweep_choices(grid, np.array([[1.0, NAN], [1.0, 1.0]]))
    with pytest.raises(TableError, match="expected"):
        realised_curve(np.zeros((1, 3), dtype=np.intp), grid, grid)


# --- paired bootstrap ---------------------------------------------------------------------------------------------


def two_model_world(n: int, seed: int) -> tuple[FloatArray, FloatArray]:
    """Cheap model: succeeds half the time at cost 1; dear model: .8 at cost 2. Mixture area .65, cheap alone .5."""
    rng = np.random.default_rng(seed)
    return (rng.random((n, 2)) < [0.5, 0.8]).astype(float), np.tile([1.0, 2.0], (n, 1))


def test_interval_covers_a_known_difference_about_as_often_as_it_says() -> None:
    covered = 0
    for seed in range(200):
        score, cost = two_model_world(120, seed)
        mixture = realised_curve(np.repeat([[0], [1]], 120, axis=1), score, cost)
        cheap = realised_curve(np.zeros((1, 120), dtype=np.intp), score, cost)
        found = paired_bootstrap(mixture, cheap, hull_area, n_boot=200, seed=seed)
        covered += found.low <= 0.15 <= found.high
    assert 0.90 <= covered / 200 <= 0.985


def test_bootstrap_is_paired_reproducible_and_signed() -> None:
    score, cost = two_model_world(200, 1)
    p, c = np.tile([0.5, 0.8], (200, 1)), cost
    curve = cost_quality_curve(score, cost, p, c)
    itself = paired_bootstrap(curve, curve, hull_area, n_boot=50)
    assert (itself.difference, itself.low, itself.high, itself.p_a_le_b) == (0.0, 0.0, 0.0, 1.0)
    cheap = realised_curve(np.zeros((1, 200), dtype=np.intp), score, cost)
    better = paired_bootstrap(curve, cheap, hull_area, n_boot=200, seed=3)
    assert better == paired_bootstrap(curve, cheap, hull_area, n_boot=200, seed=3)
    assert 0 < better.low < better.difference < better.high and better.p_a_le_b == 0.0
    assert (better.n, better.n_boot) == (200, 200)
    assert paired_bootstrap(cheap, curve, hull_area, n_boot=200, seed=3).difference == -better.difference


def test_an_unreached_target_counts_as_infinitely_dear() -> None:
    score, cost = two_model_world(200, 2)
    statistic = partial(cost_at_quality, target_fraction=0.95)
    cheap = realised_curve(np.zeros((1, 200), dtype=np.intp), score, cost)
    dear = realised_curve(np.ones((1, 200), dtype=np.intp), score, cost)
    found = paired_bootstrap(dear, cheap, statistic, n_boot=50)
    assert found.difference == found.low == found.high == -math.inf and found.p_a_le_b == 1.0
    both = paired_bootstrap(cheap, cheap, statistic, n_boot=50)
    assert both.difference == both.low == both.high == 0.0


def test_resamples_agree_with_resampling_the_rows_one_by_one() -> None:
    score, cost = two_model_world(30, 4)
    choices = np.repeat([[0], [1]], 30, axis=1)
    samples = bootstrap_samples(realised_curve(choices, score, cost), [hull_area], n_boot=5, seed=9)[0]
    counts = np.random.default_rng(9).multinomial(30, np.full(30, 1 / 30), size=5)
    for sample, count in zip(samples, counts, strict=True):
        rows = np.repeat(np.arange(30), count)
        assert sample == pytest.approx(realised_curve(choices, score[rows], cost[rows]).value(hull_area))


def test_rows_of_one_group_are_resampled_together() -> None:
    score, cost = two_model_world(100, 5)
    choices = np.repeat([[0], [1]], 400, axis=1)
    # every request four times: grouped, that is no more evidence than once; alone, it looks like four times as much
    copies = np.repeat(score, 4, axis=0), np.repeat(cost, 4, axis=0)
    spread = {
        name: float(np.std(bootstrap_samples(realised_curve(choices, *copies, group), [hull_area], n_boot=400, seed=1)))
        for name, group in (("grouped", np.repeat(np.arange(100), 4)), ("alone", None))
    }
    assert spread["grouped"] == pytest.approx(2 * spread["alone"], rel=0.25)
    incomplete = copies[0].copy()
    incomplete[:8, 0] = NAN  # groups that fall out leave no empty draws
    kept = realised_curve(choices, incomplete, copies[1], np.repeat(np.arange(100), 4))
    assert kept.group is not None and set(kept.group.tolist()) == set(range(98))


def test_curves_on_other_outcomes_are_not_a_pair() -> None:
    choices = np.zeros((1, 40), dtype=np.intp)
    a, b = (realised_curve(choices, *two_model_world(40, seed)) for seed in (1, 2))
    with pytest.raises(TableError, match="different outcomes"):
        paired_bootstrap(a, b, hull_area, n_boot=2)


def test_paired_difference_from_given_samples() -> None:
    a, b = np.arange(100.0), np.zeros(100)
    found = paired_difference(49.5, 0.0, a, b, n=7)
    assert (found.low, found.high, found.p_a_le_b, found.n) == (2.0, 97.0, 0.01, 7)
