"""The router inside the LiteLLM proxy: its hooks, the routes it adds, and the name of the model in what it answers.

What is relied on of the proxy: a pre-call hook may change the body; ``fallbacks`` in the body are this request's own,
and are read when an attempt has failed; each attempt, failed or not, is reported by the deployment hooks; a failure of
the whole request is reported with the exception that the client will be told of.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hmac
import logging
import math
import os
import traceback
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from pathlib import PurePath
from typing import Any, TypeVar

from router_ml import gateway_wire as wire
from router_ml.completion import translate
from router_ml.errors import BudgetExceededError, GatewayError, NoEligibleModelError, OutcomeLogError, RequestError
from router_ml.gateway import Exchange, Gateway, UnknownModelError, current

MASTER_KEY = "LITELLM_MASTER_KEY"

_UNUSED = frozenset({
    "AdmissionControlMiddleware", "BillableRequestMetricsMiddleware", "BudgetReservationReleaseMiddleware",
    "CORSMiddleware", "GZipBufferedResponseMiddleware", "PrometheusAuthMiddleware", "RedisRequestBatchMiddleware",
    "RequestSizeLimitMiddleware", "SecurityHeadersMiddleware",
})  # fmt: skip

log = logging.getLogger("router_ml.gateway")


def install(gateway: Gateway, proxy: Any) -> None:
    """Put the gateway into the proxy, before it starts.

    :param proxy: ``litellm.proxy.proxy_server``.
    :raises GatewayError: if this version of the proxy has not what the gateway needs.
    """
    import litellm

    litellm.callbacks.append(_hook(gateway))
    if gateway.alone:
        _leave_out(proxy)
    try:
        _name_streams(proxy)
        _answer_in_format(proxy)
        _add_routes(gateway, proxy)
    except (AttributeError, ImportError) as exc:
        raise GatewayError(f"this litellm does not fit: {exc}; run: pip install 'router-ml[gateway]'") from exc


def _leave_out(proxy: Any) -> None:
    """Leave out what serves keys, teams, browsers and licences: about a tenth of a request's time."""
    from litellm.proxy.db.exception_handler import PrismaDBExceptionHandler
    from litellm.proxy.hooks import PROXY_HOOKS

    PROXY_HOOKS.clear()
    # it asks of every refused request whether its database refused it, and breaks where the client of that is not
    # installed (litellm issue 35457)
    for name in ("is_database_infrastructure_error", "is_database_service_unavailable_error"):
        setattr(PrismaDBExceptionHandler, name, staticmethod(lambda _: False))
    kept = [one for one in proxy.app.user_middleware if getattr(one.cls, "__name__", "") not in _UNUSED]
    proxy.app.user_middleware[:] = kept


async def authenticate(request: Any, api_key: str) -> Any:
    """Check the one key there is, as the proxy's ``custom_auth``; its own way would look for keys in a database.

    :raises ProxyException: if it is another.
    """
    from litellm.proxy._types import LitellmUserRoles, ProxyException, UserAPIKeyAuth

    if not hmac.compare_digest(api_key.encode(), os.environ[MASTER_KEY].encode()):
        raise ProxyException(message="the key is wrong", type="auth_error", param=None, code=401)
    return UserAPIKeyAuth(user_role=LitellmUserRoles.PROXY_ADMIN, user_id="master")


def _exchange() -> Exchange | None:
    holder = current.get(None)
    return None if holder is None else holder.exchange


def _hook(gateway: Gateway) -> Any:
    from litellm.integrations.custom_logger import CustomLogger

    async def run(step: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.to_thread(step, *arguments) if gateway.waits else step(*arguments)

    # Only these: a hook that looks at every piece of a stream would have the proxy do so for every stream.
    class Hook(CustomLogger):  # type: ignore[misc]
        @_reported
        async def async_pre_call_hook(self, user_api_key_dict: Any, cache: Any, data: Any, call_type: str) -> None:
            holder = current.get(None)
            if holder is None or call_type not in wire.CALLS:
                raise refusal(RequestError(f"the gateway does not serve {call_type}"))
            headers = (data.get("proxy_server_request") or {}).get("headers") or {}
            try:
                holder.exchange = await run(gateway.begin, call_type, data, headers.get(wire.SESSION_HEADER))
            except (RequestError, NoEligibleModelError, BudgetExceededError) as exc:
                raise refusal(exc) from exc
            if gateway.alone and not data.get("stream"):
                # else the proxy would prepare its own record of the answer, which nobody reads
                data["litellm_logging_obj"].claim_async_success_log()

        @_reported
        async def async_pre_call_deployment_hook(self, kwargs: Any, call_type: Any) -> None:
            exchange = _exchange()
            if exchange is not None and _is_outermost(exchange, call_type):
                gateway.started(exchange, kwargs["model_info"]["id"])

        @_reported
        async def async_post_call_failure_deployment_hook(
            self, request_data: Any, exception: Exception, call_type: Any, fallback_depth: int | None = None
        ) -> None:
            exchange = _exchange()
            if exchange is not None and _is_outermost(exchange, call_type):
                await asyncio.sleep(await run(gateway.failed, exchange, exception))

        @_reported
        async def async_post_call_success_hook(self, data: Any, user_api_key_dict: Any, response: Any) -> Any:
            exchange = _exchange()
            if exchange is None:
                return None
            again = functools.partial(_call_again, exchange, data)
            return await gateway.answered(exchange, response, _hidden(response), again)

        @_reported
        async def async_log_success_event(self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any) -> None:
            exchange = _exchange()
            if exchange is not None and exchange.running and kwargs.get("stream"):
                await gateway.answered(exchange, response_obj, _hidden(response_obj), None)

        @_reported
        async def async_post_call_response_headers_hook(
            self, data: Any, user_api_key_dict: Any, response: Any, request_headers: Any = None,
            litellm_call_info: Any = None,
        ) -> dict[str, str]:  # fmt: skip
            exchange = _exchange()
            if exchange is None:
                return {}
            _name_model(response, exchange.calling)
            return response_headers(exchange)

        @_reported
        async def async_post_call_failure_hook(
            self, request_data: Any, original_exception: Any, user_api_key_dict: Any, traceback_str: str | None = None
        ) -> None:
            exchange = _exchange()
            if exchange is not None and not exchange.closed:
                if exchange.running:  # a stream that broke off
                    gateway.broke(exchange, translate(original_exception, gateway.live.specs[exchange.calling]))
                _explain(exchange, original_exception)
                gateway.close(exchange)

    return Hook()


Step = TypeVar("Step", bound=Callable[..., Coroutine[Any, Any, Any]])


def _reported(hook: Step) -> Step:
    """Say in the log that a hook broke, which the proxy would keep to itself; never what the error says."""

    @functools.wraps(hook)
    async def reporting(*arguments: Any, **named: Any) -> Any:
        try:
            return await hook(*arguments, **named)
        except Exception as exc:
            if type(exc).__name__ != "ProxyException":  # which is an answer to the client
                log.error("%s broke: %s", hook.__name__, _where(exc))
            raise

    return reporting  # type: ignore[return-value]


def _where(exc: BaseException) -> str:
    """What was raised and where, without its message."""
    frames = traceback.extract_tb(exc.__traceback__)
    return type(exc).__name__ + (f" at {PurePath(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "")


def _is_outermost(exchange: Exchange, call_type: Any) -> bool:
    """Whether a call is the attempt itself, not one inside it: messages to another provider become completions."""
    return bool(getattr(call_type, "value", call_type) == exchange.call)


def refusal(exc: Exception) -> Exception:
    """The error as the proxy reports it to the client."""
    from litellm.proxy._types import ProxyException

    kind, status = "invalid_request_error", 400
    if isinstance(exc, UnknownModelError):
        kind, status = "not_found_error", 404
    elif isinstance(exc, BudgetExceededError):
        kind, status = "insufficient_quota", 429
    elif isinstance(exc, OutcomeLogError):
        kind, status = "service_unavailable", 503
    refusal: Exception = ProxyException(message=str(exc), type=kind, param=None, code=status)
    return refusal


def _explain(exchange: Exchange, exc: Any) -> None:
    """Change the exception that the proxy tells the client of; both of its formats read these attributes."""
    told = wire.failure_of(exchange.attempts)
    if told is None:
        return
    status, message, wait = told
    log.warning("decision %s: %s", exchange.decision.decision_id, message.partition(". ")[0])
    with contextlib.suppress(AttributeError):
        exc.status_code, exc.message = status, message
        if wait is not None:
            exc.headers = {**(getattr(exc, "headers", None) or {}), "retry-after": str(math.ceil(wait))}


def response_headers(exchange: Exchange) -> dict[str, str]:
    """What the client learns beside the answer."""
    decision = exchange.decision
    values = {
        "model": exchange.calling, "confidence": f"{exchange.confidence:.4f}", "reason": decision.reason.code.value,
        "decision-id": decision.decision_id,
    }  # fmt: skip
    return {f"x-router-ml-{name}": wire.header(value) for name, value in values.items()}


def _name_model(response: Any, name: str) -> None:
    if isinstance(response, dict):
        response["model"] = name
    elif hasattr(response, "usage"):  # not a stream, whose model is the provider's name of it
        response.model = name


def _hidden(response: Any) -> Mapping[str, Any]:
    found = response.get("_hidden_params") if isinstance(response, dict) else getattr(response, "_hidden_params", None)
    return found if isinstance(found, dict) else {}


async def _call_again(exchange: Exchange, data: Mapping[str, Any], model: str) -> tuple[Any, Mapping[str, Any]]:
    """Send the client's request to another model, through the proxy's own router."""
    from litellm.proxy import proxy_server

    own = ("model", "stream", "metadata", "fallbacks")
    kept = {name: data[name] for name in data["proxy_server_request"]["body"] if name in data and name not in own}
    call = getattr(proxy_server.llm_router, exchange.call)
    response = await call(model=model, fallbacks=[{"*": exchange.following}], **kept)
    return response, _hidden(response)


def _name_streams(proxy: Any) -> None:
    """Have streams name the model that was routed to, where the proxy would name what the client asked for.

    It asks for the name once, when a stream begins, in these two functions.
    """
    from litellm.proxy.common_request_processing import ProxyBaseLLMRequestProcessing as Processing

    openai_stream, anthropic_stream = proxy.select_data_generator, Processing.async_sse_data_generator

    def named_openai(response: Any, user_api_key_dict: Any, request_data: Any, *rest: Any, **named: Any) -> Any:
        exchange = _exchange()
        if exchange is not None:
            request_data["_litellm_client_requested_model"] = exchange.calling
            if exchange.call == "aresponses":
                response = _named_events(response, exchange.calling)
        return openai_stream(response, user_api_key_dict, request_data, *rest, **named)

    def named_anthropic(*arguments: Any, restamp_model: str | None = None, **named: Any) -> Any:
        exchange = _exchange()
        name = restamp_model if exchange is None else exchange.calling
        return anthropic_stream(*arguments, restamp_model=name, **named)

    proxy.select_data_generator = named_openai
    Processing.async_sse_data_generator = staticmethod(named_anthropic)


async def _named_events(events: Any, name: str) -> AsyncIterator[Any]:
    """Events of OpenAI's responses, of which some hold the response so far."""
    try:
        async for event in events:
            inner: Any = getattr(event, "response", None)
            if getattr(inner, "model", None) is not None:  # a copy: the proxy prices the event that it keeps
                event = event.model_copy(update={"response": inner.model_copy(update={"model": name})})
            yield event
    finally:
        if hasattr(events, "aclose"):
            await events.aclose()


def _answer_in_format(proxy: Any) -> None:
    """Have clients of Anthropic's format get their errors in it, also those of which its endpoint never hears."""
    from litellm.proxy._types import ProxyException
    from litellm.proxy.anthropic_endpoints.endpoints import _anthropic_error_json_response as anthropic_error

    openai_error = proxy.openai_exception_handler

    async def answer(request: Any, exc: Any) -> Any:
        if request.url.path.startswith("/v1/messages"):
            return anthropic_error(exc, request)
        return await openai_error(request, exc)

    proxy.app.add_exception_handler(ProxyException, answer)


def _add_routes(gateway: Gateway, proxy: Any) -> None:
    """``/v1/route``, ``/v1/feedback`` and ``/metrics``, each behind the proxy's own check of the key."""
    from fastapi import Depends, Request
    from fastapi.responses import JSONResponse, Response
    from litellm.proxy.auth.user_api_key_auth import user_api_key_auth
    from litellm.proxy.common_utils.http_parsing_utils import _read_request_body as read_body

    async def route(request: Request) -> Response:
        body = await read_body(request)
        call = "aresponses" if "input" in body else "acompletion"
        try:
            return JSONResponse(gateway.route(call, body, request.headers.get(wire.SESSION_HEADER)))
        except (RequestError, NoEligibleModelError, BudgetExceededError) as exc:
            raise refusal(exc) from exc

    async def feedback(request: Request) -> Response:
        try:
            gateway.feedback(await read_body(request))
        except (RequestError, OutcomeLogError) as exc:
            raise refusal(exc) from exc
        return JSONResponse({"status": "accepted"}, status_code=202)

    async def metrics() -> Response:
        return Response(gateway.live.telemetry.exposition(), media_type="text/plain; version=0.0.4")

    # annotations are text in this module, and the names they need are known in this function alone
    route.__annotations__["request"] = feedback.__annotations__["request"] = Request
    named = {"dependencies": [Depends(user_api_key_auth)], "response_model": None}
    proxy.app.add_api_route("/v1/route", route, methods=["POST"], **named)
    proxy.app.add_api_route("/v1/feedback", feedback, methods=["POST"], **named)
    proxy.app.add_api_route("/metrics", metrics, methods=["GET"], **named)
