"""What the metrics and the spans say, read back through the two libraries themselves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from router_ml.attempt import Attempt, AttemptKind, Usage, Verdict
from router_ml.errors import MissingExtraError, ProviderUnavailableError, RateLimitedError
from router_ml.health import Health
from router_ml.pool import Breaker, ModelPool, ModelSpec
from router_ml.request import Candidate, Evidence, Reason, ReasonCode, RouteDecision
from router_ml.telemetry import OFF, Prometheus, Telemetry, Together, Tracing

ROOT = Path(__file__).resolve().parents[1]
SMALL, LARGE = "acme/small", "bedrock/large"
SECRET = "the patient's name is Joseph"


def decision(
    model: str = SMALL, reason: ReasonCode = ReasonCode.CHEAPEST_LIKELY, *, escalated: bool = False, key: str = "d1"
) -> RouteDecision:
    return RouteDecision(
        decision_id=key, model=model, confidence=0.8, plan_confidence=0.9, escalated=escalated, degraded=False,
        reason=Reason(reason, "because"), candidates=(Candidate(model, 0.8, 0.01, None, None),), plan=(model, LARGE),
        params={}, expected_cost_usd=0.01, baseline_cost_usd=0.05, propensity=1.0,
        evidence=Evidence("measured", 100, 0.5, ""), router_version="r1",
    )  # fmt: skip


def attempt(model: str = SMALL, **fields: object) -> Attempt:
    known = {"stage": 0, "started_at": 1_000.5, "latency_s": 0.25} | fields
    return Attempt(model, AttemptKind.ANSWER, **known)  # type: ignore[arg-type]


FAILED = attempt(error=RateLimitedError(f"429: {SECRET}", model=SMALL, status=429))


def pool() -> ModelPool:
    models = (ModelSpec(SMALL, local=True), ModelSpec(LARGE, local=True))
    return ModelPool(models, LARGE, breaker=Breaker(min_requests=4, half_open_after_s=30.0))


class Spans:
    """A real tracer provider that keeps its spans in memory."""

    def __init__(self) -> None:
        self.provider = TracerProvider()
        self.exporter = InMemorySpanExporter()
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))

    def all(self) -> list[ReadableSpan]:
        return list(self.exporter.get_finished_spans())


@pytest.fixture
def spans() -> Spans:
    return Spans()


def value(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(f"router_ml_{name}", labels)


def test_decisions_are_counted_by_model_and_reason() -> None:
    registry = CollectorRegistry()
    metrics = Prometheus(registry)
    metrics.decided(decision(), 1e-4)
    metrics.decided(decision(), 1e-4)
    metrics.decided(decision(LARGE, ReasonCode.LOW_CONFIDENCE, escalated=True), 0.004)
    assert value(registry, "decisions_total", model=SMALL, reason="cheapest_likely") == 2
    assert value(registry, "decisions_total", model=LARGE, reason="low_confidence") == 1
    assert value(registry, "escalations_total") == 1


def test_routing_time_is_told_apart_between_50_us_and_50_ms() -> None:
    registry = CollectorRegistry()
    metrics = Prometheus(registry)
    for seconds in (4e-5, 3e-4, 0.04, 0.2):
        metrics.decided(decision(), seconds)
    below = [value(registry, "routing_seconds_bucket", le=le) for le in ("5e-05", "0.0005", "0.05", "+Inf")]
    assert below == [1, 2, 3, 4]
    assert value(registry, "routing_seconds_sum") == pytest.approx(0.24034)


def test_attempts_are_counted_by_how_they_ended() -> None:
    registry = CollectorRegistry()
    metrics = Prometheus(registry)
    for one in (attempt(), attempt(cache_hit=True), FAILED, attempt(LARGE)):
        metrics.attempted(one, decision())
    assert value(registry, "attempts_total", model=SMALL, outcome="answered") == 1
    assert value(registry, "attempts_total", model=SMALL, outcome="cached") == 1
    assert value(registry, "attempts_total", model=SMALL, outcome="RateLimitedError") == 1
    assert value(registry, "attempt_seconds_count", model=SMALL) == 3
    assert value(registry, "attempt_seconds_sum", model=LARGE) == 0.25


def test_verdicts_are_counted_and_an_unchecked_answer_is_none() -> None:
    registry = CollectorRegistry()
    metrics = Prometheus(registry)
    for verdict in (None, Verdict(True), Verdict(False, "too short"), Verdict(False, "too short")):
        metrics.attempted(attempt(verdict=verdict), decision())
    assert value(registry, "verdicts_total", model=SMALL, accepted="true") == 1
    assert value(registry, "verdicts_total", model=SMALL, accepted="false") == 2


def test_fallbacks_are_counted_by_the_error_that_led_to_them() -> None:
    registry = CollectorRegistry()
    metrics = Prometheus(registry)
    metrics.fell_back(SMALL, ProviderUnavailableError("503"))
    assert value(registry, "fallbacks_total", model=SMALL, error="ProviderUnavailableError") == 1


def test_a_saving_below_zero_lowers_what_was_saved() -> None:
    registry = CollectorRegistry()
    metrics = Prometheus(registry)
    metrics.finished(0.01, 0.04)
    metrics.finished(0.09, -0.06)
    assert value(registry, "saved_usd_total") == pytest.approx(-0.02)
    assert value(registry, "baseline_usd_total") == pytest.approx(0.08)


usd = st.floats(0.0, 10.0)


@given(st.lists(st.tuples(st.sampled_from([SMALL, LARGE]), usd, usd)))
def test_cost_is_that_of_the_calls_and_of_their_checks(calls: list[tuple[str, float, float]]) -> None:
    registry = CollectorRegistry()
    metrics = Prometheus(registry)
    for model, cost, check in calls:
        metrics.attempted(attempt(model, cost_usd=cost, verdict=Verdict(True, cost_usd=check)), decision())
    for model in (SMALL, LARGE):
        spent = sum(cost + check for name, cost, check in calls if name == model)
        assert (value(registry, "cost_usd_total", model=model) or 0.0) == pytest.approx(spent)


def test_the_state_of_the_models_is_read_when_the_metrics_are() -> None:
    now = [1_000.0]
    registry, health = CollectorRegistry(), Health(pool(), clock=lambda: now[0])
    metrics = Prometheus(registry)
    assert value(registry, "breaker_state", model=SMALL) is None
    metrics.watch(health)
    assert value(registry, "breaker_state", model=SMALL) == 0
    for _ in range(4):
        assert health.admit(SMALL)
        health.failed(SMALL, ProviderUnavailableError("503"), 0.1)
    assert value(registry, "breaker_state", model=SMALL) == 2
    assert value(registry, "error_rate", model=SMALL) == 1.0
    assert value(registry, "call_share", model=SMALL) == 1.0 and value(registry, "call_share", model=LARGE) == 0.0
    now[0] += 31.0
    assert value(registry, "breaker_state", model=SMALL) == 1
    assert value(registry, "breaker_state", model=LARGE) == 0


def test_headroom_and_latency_appear_once_they_are_known() -> None:
    registry, health = CollectorRegistry(), Health(pool())
    metrics = Prometheus(registry)
    metrics.watch(health)
    assert value(registry, "rate_limit_headroom", model=SMALL) is None
    limits = {"x-ratelimit-limit-requests": "100", "x-ratelimit-remaining-requests": "30"}
    for _ in range(40):
        health.admit(SMALL)
        health.succeeded(SMALL, 0.5, limits)
    assert value(registry, "rate_limit_headroom", model=SMALL) == pytest.approx(0.3)
    assert value(registry, "latency_seconds", model=SMALL, quantile="0.5") == pytest.approx(0.5)
    assert value(registry, "latency_seconds", model=LARGE, quantile="0.5") is None


def test_watching_another_pool_shows_that_one_alone() -> None:
    registry = CollectorRegistry()
    metrics = Prometheus(registry)
    metrics.watch(Health(pool()))
    metrics.watch(Health(ModelPool((ModelSpec("other/one", local=True),), "other/one")))
    assert value(registry, "breaker_state", model="other/one") == 0
    assert value(registry, "breaker_state", model=SMALL) is None


def test_the_exposition_is_read_by_prometheus_own_parser() -> None:
    metrics = Prometheus(CollectorRegistry())
    metrics.watch(Health(pool()))
    metrics.decided(decision(), 1e-4)
    metrics.attempted(FAILED, decision())
    metrics.finished(0.01, -0.02)
    samples = [s for family in text_string_to_metric_families(metrics.exposition().decode()) for s in family.samples]
    found = {s.name for s in samples}
    assert {"router_ml_decisions_total", "router_ml_breaker_state", "router_ml_routing_seconds_bucket"} <= found
    assert next(s.value for s in samples if s.name == "router_ml_saved_usd_total") == -0.02


def test_a_registry_holds_one_set_of_metrics() -> None:
    registry = CollectorRegistry()
    Prometheus(registry)
    with pytest.raises(ValueError, match="router_ml_decisions"):
        Prometheus(registry)


def test_a_call_is_a_client_span_under_its_route(spans: Spans) -> None:
    tracing = Tracing(spans.provider)
    chosen = decision()
    tracing.decided(chosen, 0.002)
    tracing.attempted(attempt(usage=Usage(120, 30, 100), cost_usd=0.5, verdict=Verdict(True)), chosen)
    route, chat = spans.all()
    assert route.name == "route" and chat.name == f"chat {SMALL}"
    assert route.kind is SpanKind.INTERNAL and chat.kind is SpanKind.CLIENT
    assert chat.parent is not None and route.context is not None and chat.parent.span_id == route.context.span_id
    assert chat.attributes == {
        "gen_ai.operation.name": "chat", "gen_ai.provider.name": "acme", "gen_ai.request.model": "auto",
        "gen_ai.response.model": SMALL, "gen_ai.usage.input_tokens": 120, "gen_ai.usage.output_tokens": 30,
        "gen_ai.usage.cache_read.input_tokens": 100, "router_ml.decision_id": "d1", "router_ml.model": SMALL,
        "router_ml.kind": "answer", "router_ml.stage": 0, "router_ml.cost_usd": 0.5, "router_ml.cache_hit": False,
        "router_ml.accepted": True,
    }  # fmt: skip
    assert route.attributes is not None
    assert route.attributes["router_ml.model"] == SMALL and route.attributes["router_ml.plan"] == (SMALL, LARGE)


def test_spans_last_as_long_as_what_they_stand_for(spans: Spans) -> None:
    tracing = Tracing(spans.provider)
    tracing.decided(decision(), 0.002)
    tracing.attempted(attempt(started_at=1_000.5, latency_s=0.25), decision())
    route, chat = spans.all()
    assert route.start_time and route.end_time and chat.start_time and chat.end_time
    assert route.end_time - route.start_time == pytest.approx(2_000_000, abs=1_000)
    assert (chat.start_time, chat.end_time) == (1_000_500_000_000, 1_000_750_000_000)


def test_attempts_of_requests_that_overlap_find_their_own_route(spans: Spans) -> None:
    tracing = Tracing(spans.provider)
    first, second = decision(key="d1"), decision(LARGE, key="d2")
    for one in (first, second):
        tracing.decided(one, 0.001)
    tracing.attempted(attempt(SMALL), first)
    tracing.attempted(attempt(LARGE), second)
    routes = {span.attributes["router_ml.decision_id"]: span for span in spans.all()[:2] if span.attributes}
    for chat in spans.all()[2:]:
        assert chat.attributes is not None and chat.parent is not None
        route = routes[chat.attributes["router_ml.decision_id"]]
        assert route.context is not None and chat.parent.span_id == route.context.span_id
        assert chat.context is not None and chat.context.trace_id == route.context.trace_id


def test_the_route_belongs_to_the_trace_of_the_caller(spans: Spans) -> None:
    tracing = Tracing(spans.provider)
    with spans.provider.get_tracer("app").start_as_current_span("GET /") as outer:
        tracing.decided(decision(), 0.001)
    route = spans.all()[0]
    assert route.parent is not None and route.parent.span_id == outer.get_span_context().span_id


def test_a_failed_call_names_its_error_and_has_no_usage(spans: Spans) -> None:
    tracing = Tracing(spans.provider)
    tracing.attempted(FAILED, decision())
    (chat,) = spans.all()
    assert chat.status.status_code is StatusCode.ERROR and chat.attributes is not None
    assert chat.attributes["error.type"] == "RateLimitedError" and chat.attributes["router_ml.model"] == SMALL
    assert not {"gen_ai.response.model", "gen_ai.usage.input_tokens"} & set(chat.attributes)


def test_a_pinned_model_is_what_was_requested_and_providers_have_the_conventions_names(spans: Spans) -> None:
    Tracing(spans.provider).attempted(attempt(LARGE), decision(LARGE, ReasonCode.PINNED))
    (chat,) = spans.all()
    assert chat.attributes is not None
    assert chat.attributes["gen_ai.request.model"] == LARGE
    assert chat.attributes["gen_ai.provider.name"] == "aws.bedrock"


def test_what_an_error_quotes_reaches_neither_metrics_nor_spans(spans: Spans) -> None:
    both = Together(metrics := Prometheus(CollectorRegistry()), Tracing(spans.provider))
    assert FAILED.error is not None
    FAILED.error.detail = SECRET
    both.attempted(FAILED, decision())
    both.attempted(attempt(verdict=Verdict(False, SECRET)), decision())
    both.fell_back(SMALL, FAILED.error)
    assert SECRET not in metrics.exposition().decode()
    assert len(spans.all()) == 2 and all(SECRET not in span.to_json() for span in spans.all())


def test_both_hear_of_everything(spans: Spans) -> None:
    registry = CollectorRegistry()
    both = Together(Prometheus(registry), Tracing(spans.provider))
    both.watch(Health(pool()))
    both.decided(decision(), 0.001)
    both.attempted(attempt(), decision())
    both.finished(0.01, 0.02)
    assert value(registry, "attempts_total", model=SMALL, outcome="answered") == 1
    assert [span.name for span in spans.all()] == ["route", f"chat {SMALL}"]
    assert b"router_ml_saved_usd_total 0.02" in both.exposition() and b"router_ml_breaker_state" in both.exposition()


def test_the_spans_of_many_decisions_are_forgotten(spans: Spans, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router_ml.telemetry._OPEN_ROUTES", 2)
    tracing = Tracing(spans.provider)
    for key in ("d1", "d2", "d3"):
        tracing.decided(decision(key=key), 0.001)
        tracing.attempted(attempt(), decision(key="d1"))
    assert [span.parent is not None for span in spans.all() if span.name != "route"] == [True, True, False]


def test_off_hears_of_everything_and_shows_nothing() -> None:
    off: Telemetry = OFF
    off.watch(Health(pool()))
    off.decided(decision(), 0.001)
    off.attempted(attempt(), decision())
    off.fell_back(SMALL, ProviderUnavailableError("503"))
    off.finished(0.01, 0.02)
    assert off.exposition() == b""


def test_neither_library_is_imported_while_telemetry_is_off(router_path: Path) -> None:
    code = (
        "import sys; from router_ml.live import LiveRouter; from router_ml.router import Router; "
        f"live = LiveRouter(Router.load({str(router_path)!r})); live.decide(live.read('hi')); "
        "print(sorted({'prometheus_client', 'opentelemetry'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("telemetry", "library", "extra"),
    [(Prometheus, "prometheus_client", "metrics"), (Tracing, "opentelemetry", "tracing")],
)
def test_a_missing_library_says_how_to_install_it(
    telemetry: type, library: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingExtraError, match=rf"router-ml\[{extra}\]"):
        telemetry()
