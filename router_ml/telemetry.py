"""What an operator sees while it runs: Prometheus metrics and OpenTelemetry spans, both optional, both off by default.

``Telemetry`` is the set of events that whoever carries decisions out reports. ``OFF`` ignores them; neither library is
imported before ``Prometheus`` or ``Tracing`` is made. Nothing here holds text of a prompt or of an answer, and models
come from the pool, never from a caller, so that the number of series is bounded.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

from router_ml.attempt import Attempt
from router_ml.errors import MissingExtraError, ProviderError
from router_ml.request import ReasonCode, RouteDecision

if TYPE_CHECKING:
    from opentelemetry.trace import Span, SpanContext, TracerProvider
    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric

    from router_ml.health import Health

AUTO = "auto"  # the model that a caller asks for who leaves the choice to the router

# a decision takes tens of microseconds; a call takes up to the default time-out and beyond
_ROUTING_BUCKETS = (5e-5, 1e-4, 2e-4, 3.5e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2)
_ATTEMPT_BUCKETS = (0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0, 120.0)
_STATES = {"closed": 0.0, "half_open": 1.0, "open": 2.0}

# litellm's name of a provider -> the semantic conventions' name, where they differ
_PROVIDERS = {
    "azure": "azure.ai.openai", "azure_ai": "azure.ai.inference", "bedrock": "aws.bedrock", "gemini": "gcp.gemini",
    "mistral": "mistral_ai", "vertex_ai": "gcp.vertex_ai", "watsonx": "ibm.watsonx.ai", "xai": "x_ai",
}  # fmt: skip
_OPEN_ROUTES = 10_000  # decisions whose attempts can still find their parent: those of requests in flight


class Telemetry(Protocol):
    """Hears of what happens. No method blocks or raises."""

    def decided(self, decision: RouteDecision, seconds: float) -> None:
        """A decision was made, in so many seconds."""

    def attempted(self, attempt: Attempt, decision: RouteDecision) -> None:
        """A call ended, and its answer was checked if anybody checks it; the decision is the one that led to it."""

    def fell_back(self, model: str, error: ProviderError) -> None:
        """A model of the pool was given up after this error."""

    def finished(self, cost_usd: float, saving_usd: float) -> None:
        """A request was answered: cost of all its attempts, and saving against the escalation model, maybe below 0."""

    def watch(self, health: Health) -> None:
        """Show the state of this pool's models whenever somebody looks. A second call replaces the first."""

    def exposition(self) -> bytes:
        """The metrics in Prometheus' text format; empty where there are none."""


class Off:
    """Hears of nothing."""

    def decided(self, decision: RouteDecision, seconds: float) -> None: ...

    def attempted(self, attempt: Attempt, decision: RouteDecision) -> None: ...

    def fell_back(self, model: str, error: ProviderError) -> None: ...

    def finished(self, cost_usd: float, saving_usd: float) -> None: ...

    def watch(self, health: Health) -> None: ...

    def exposition(self) -> bytes:
        return b""


OFF = Off()


class Together:
    """Tells several of the same: ``Together(Prometheus(), Tracing())``."""

    def __init__(self, *parts: Telemetry) -> None:
        self.parts = parts

    def decided(self, decision: RouteDecision, seconds: float) -> None:
        for part in self.parts:
            part.decided(decision, seconds)

    def attempted(self, attempt: Attempt, decision: RouteDecision) -> None:
        for part in self.parts:
            part.attempted(attempt, decision)

    def fell_back(self, model: str, error: ProviderError) -> None:
        for part in self.parts:
            part.fell_back(model, error)

    def finished(self, cost_usd: float, saving_usd: float) -> None:
        for part in self.parts:
            part.finished(cost_usd, saving_usd)

    def watch(self, health: Health) -> None:
        for part in self.parts:
            part.watch(health)

    def exposition(self) -> bytes:
        return b"".join(part.exposition() for part in self.parts)


class Prometheus(Off):
    """Prometheus metrics.

    :param registry: None: the library's default one, which ``prometheus_client.start_http_server`` serves.
    :raises MissingExtraError: if prometheus-client is not installed.
    :raises ValueError: if the registry holds these metrics already: one ``Prometheus`` for each registry.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        try:
            from prometheus_client import REGISTRY, Counter, Gauge, Histogram
        except ImportError as exc:
            raise MissingExtraError("prometheus-client", "metrics") from exc
        held = self.registry = REGISTRY if registry is None else registry

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"router_ml_{name}", text, labels, registry=held)

        self._decisions = counter("decisions", "Decisions.", "model", "reason")
        self._escalations = counter("escalations", "Decisions for the escalation model: no candidate likely enough.")
        self._attempts = counter("attempts", "Calls of models, by how they ended.", "model", "outcome")
        self._verdicts = counter("verdicts", "Answers that a verifier checked.", "model", "accepted")
        self._fallbacks = counter("fallbacks", "Models given up after an error.", "model", "error")
        self._cost = counter("cost_usd", "US dollars of calls and of the checks of their answers.", "model")
        self._baseline = counter("baseline_usd", "US dollars that the escalation model would have cost.")
        # a gauge, because a counter cannot fall: an escalation after a rejected answer costs more than it saves
        self._saved = Gauge("router_ml_saved_usd_total", "US dollars saved against it, net.", registry=held)
        self._routing = Histogram(
            "router_ml_routing_seconds", "Time of a decision.", buckets=_ROUTING_BUCKETS, registry=held
        )
        self._seconds = Histogram(
            "router_ml_attempt_seconds", "Time of a call.", ["model"], buckets=_ATTEMPT_BUCKETS, registry=held
        )
        self._health = _HealthCollector()
        held.register(self._health)

    def decided(self, decision: RouteDecision, seconds: float) -> None:
        self._decisions.labels(decision.model, decision.reason.code.value).inc()
        self._routing.observe(seconds)
        if decision.escalated:
            self._escalations.inc()

    def attempted(self, attempt: Attempt, decision: RouteDecision) -> None:
        self._attempts.labels(attempt.model, _outcome(attempt)).inc()
        self._seconds.labels(attempt.model).observe(attempt.latency_s)
        self._cost.labels(attempt.model).inc(max(0.0, attempt.total_cost_usd))
        if attempt.verdict is not None:
            self._verdicts.labels(attempt.model, str(attempt.verdict.accepted).lower()).inc()

    def fell_back(self, model: str, error: ProviderError) -> None:
        self._fallbacks.labels(model, type(error).__name__).inc()

    def finished(self, cost_usd: float, saving_usd: float) -> None:
        self._saved.inc(saving_usd)
        self._baseline.inc(max(0.0, cost_usd + saving_usd))

    def watch(self, health: Health) -> None:
        self._health.health = health

    def exposition(self) -> bytes:
        from prometheus_client import generate_latest

        return generate_latest(self.registry)


class _HealthCollector:
    """Reads the health of the models when the metrics are read, not at every change."""

    health: Health | None = None

    def describe(self) -> list[Metric]:
        return []  # without this, registering would read the health

    def collect(self) -> Iterator[Metric]:
        if self.health is None:
            return
        from prometheus_client.core import GaugeMetricFamily

        def family(name: str, text: str, *labels: str) -> GaugeMetricFamily:
            return GaugeMetricFamily(f"router_ml_{name}", text, labels=["model", *labels])

        state = family("breaker_state", "0: closed, 1: half open, one call at a time may probe, 2: open.")
        errors = family("error_rate", "Share of recent calls that failed.")
        headroom = family("rate_limit_headroom", "Least share of a rate limit that is left.")
        share = family("call_share", "Share of recent calls of all models.")
        latency = family("latency_seconds", "Time of recent answers.", "quantile")
        for model, now in self.health.status().items():
            state.add_metric([model], _STATES[now.state.value])
            errors.add_metric([model], now.error_rate)
            share.add_metric([model], now.share)
            if now.headroom is not None:
                headroom.add_metric([model], now.headroom)
            for quantile, seconds in (("0.5", now.p50), ("0.95", now.p95)):
                if seconds is not None:
                    latency.add_metric([model, quantile], seconds)
        yield from (state, errors, headroom, share, latency)


class Tracing(Off):
    """OpenTelemetry spans: ``route`` for a decision, under it ``chat <model>`` for every call.

    Names and attributes are those of OpenTelemetry's semantic conventions for generative AI, which are in development
    there; what they do not know begins with ``router_ml.``. ``gen_ai.request.model`` is what the caller asked for:
    "auto", or the model that he pinned.

    :param tracer_provider: None: the global one.
    :raises MissingExtraError: if opentelemetry is not installed.
    """

    def __init__(self, tracer_provider: TracerProvider | None = None) -> None:
        try:
            from opentelemetry import trace
        except ImportError as exc:
            raise MissingExtraError("opentelemetry", "tracing") from exc
        self._trace = trace
        self._tracer = trace.get_tracer("router_ml", tracer_provider=tracer_provider)
        # Attempts end in other tasks and threads than those that decided, so the parent is found by its decision.
        self._routes: OrderedDict[str, SpanContext] = OrderedDict()
        self._lock = threading.Lock()

    def decided(self, decision: RouteDecision, seconds: float) -> None:
        ended = time.time()
        span = self._tracer.start_span("route", start_time=_ns(ended - seconds))
        if span.is_recording():
            span.set_attributes(
                {
                    "gen_ai.request.model": _requested(decision),
                    "router_ml.decision_id": decision.decision_id,
                    "router_ml.model": decision.model,
                    "router_ml.plan": decision.plan,
                    "router_ml.reason": decision.reason.code.value,
                    "router_ml.confidence": decision.confidence,
                    "router_ml.escalated": decision.escalated,
                    "router_ml.expected_cost_usd": decision.expected_cost_usd,
                    "router_ml.router_version": decision.router_version,
                }
            )
        span.end(_ns(ended))
        with self._lock:
            self._routes[decision.decision_id] = span.get_span_context()
            if len(self._routes) > _OPEN_ROUTES:
                self._routes.popitem(last=False)

    def attempted(self, attempt: Attempt, decision: RouteDecision) -> None:
        trace, parent = self._trace, self._routes.get(decision.decision_id)
        context = None if parent is None else trace.set_span_in_context(trace.NonRecordingSpan(parent))
        started = _ns(attempt.started_at)
        span = self._tracer.start_span(
            f"chat {attempt.model}", context=context, kind=trace.SpanKind.CLIENT, start_time=started
        )
        if span.is_recording():
            self._describe(span, attempt, decision)
        span.end(started + _ns(attempt.latency_s))

    def _describe(self, span: Span, attempt: Attempt, decision: RouteDecision) -> None:
        usage = attempt.usage
        about: dict[str, Any] = {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": _provider(attempt.model),
            "gen_ai.request.model": _requested(decision),
            "router_ml.decision_id": decision.decision_id,
            "router_ml.model": attempt.model,
            "router_ml.kind": attempt.kind.value,
            "router_ml.stage": attempt.stage,
            "router_ml.cost_usd": attempt.total_cost_usd,
            "router_ml.cache_hit": attempt.cache_hit,
        }
        if attempt.error is None:
            about |= {
                "gen_ai.response.model": attempt.model,
                "gen_ai.usage.input_tokens": usage.input_tokens,
                "gen_ai.usage.output_tokens": usage.output_tokens,
                "gen_ai.usage.cache_read.input_tokens": usage.cached_tokens,
            }
        else:
            about["error.type"] = type(attempt.error).__name__
            span.set_status(self._trace.StatusCode.ERROR)
        if attempt.verdict is not None:
            about["router_ml.accepted"] = attempt.verdict.accepted
        span.set_attributes(about)


def _outcome(attempt: Attempt) -> str:
    if attempt.error is not None:
        return type(attempt.error).__name__
    return "cached" if attempt.cache_hit else "answered"


def _requested(decision: RouteDecision) -> str:
    return decision.model if decision.reason.code is ReasonCode.PINNED else AUTO


def _provider(model: str) -> str:
    """The provider, by the pool's name of the model."""
    name, slash, _ = model.partition("/")
    return _PROVIDERS.get(name, name) if slash else "unknown"


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
