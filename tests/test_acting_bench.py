"""The proofs that the benchmark runs at full size, here at a smaller one. No clock is asserted."""

from __future__ import annotations

from pathlib import Path

import pytest

from router_ml.router import Router
from training.acting_bench import behind, outage, replay, server_process, storm


@pytest.fixture(scope="module")
def router(router_path: Path) -> Router:
    return Router.load(router_path)


@pytest.mark.parametrize("fault", ["429", "500", "timeout", "broken_json", "close"])
def test_every_request_of_a_storm_is_answered_or_a_typed_error_and_no_call_is_missing_in_the_log(
    router: Router, fault: str
) -> None:
    met = storm(router, 80, faults={fault: 0.2}, timeout_s=1.0 if fault == "timeout" else 30.0)
    assert met.other_errors == 0 and met.answered + met.typed_errors == 80
    assert met.logged_decisions == 80 and met.logged_attempts == met.attempts > 80
    assert met.received == met.attempts or (fault == "timeout" and met.received < met.attempts)


def test_where_everything_fails_every_request_is_a_typed_error(router: Router) -> None:
    met = storm(router, 20, faults={"500": 1.0})
    assert (met.answered, met.typed_errors, met.other_errors, met.logged_decisions) == (0, 20, 0, 20)


def test_an_outage_is_met_by_the_breaker_and_ended_by_its_probe(router: Router) -> None:
    met = outage(router)
    assert met.calls_until_open <= 25 and met.touched <= 0.02 and met.closed_by == "probe 1"


def test_a_replay_goes_on_to_its_end(router: Router) -> None:
    assert replay(router, hours=0.5, apart_s=9.0)[0] == 200


@pytest.mark.slow
def test_memory_stays_flat_over_two_days_of_traffic(router: Router) -> None:
    n, spread = replay(router, hours=48, apart_s=4.0)
    assert n == 43_200 and spread <= 0.05


def test_the_server_process_serves_and_ends(router: Router) -> None:
    with server_process() as url:
        assert {spec.api_base for spec in behind(router.pool, url).models} == {f"{url}/v1"}
