"""The router inside the LiteLLM proxy: its hooks, the routes it adds, and the name of the model in what it answers.

What is relied on of the proxy: a pre-call hook may change the body; ``fallbacks`` in the body are this request's own,
and are read when an attempt has failed; each attempt, failed or not, is reported by the deployment hooks; a failure of
the whole request is reported with the exception that the client will be told of.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import os
from collections.abc import AsyncIterator, Callable, Mapping
from types import ModuleType
from typing import Any

from router_ml import gateway_wire as wire
from router_ml.errors import BudgetExceededError, GatewayError, NoEligibleModelError, OutcomeLogError, RequestError
from router_ml.gateway import Exchange, Gateway, UnknownModelError, current, failure_of

MASTER_KEY = "LITELLM_MASTER_KEY"

_UNUSED = frozenset({
    "AdmissionControlMiddleware", "BillableRequestMetricsMiddleware", "BudgetReservationReleaseMiddleware",
    "CORSMiddleware", "GZipBufferedResponseMiddleware", "PrometheusAuthMiddleware", "RedisRequestBatchMiddleware",
    "RequestSizeLimitMiddleware", "SecurityHeadersMiddleware",
})  # fmt: skip

log = logging.getLogger("router_ml.gateway")


def install(gateway: Gateway, proxy: ModuleType) -> None:
    """Put the gateway into the proxy, before it starts.

    :param proxy: ``litellm.proxy.proxy_server``.
    :raises GatewayError: if this version of the proxy has not what the gateway needs.
    """
    import litellm

    litellm.callbacks.append(_hook(gateway))
    if gateway.alone:
        _leave_out(proxy)
    _name_streams(proxy)
    _add_routes(gateway, proxy)


def _leave_out(proxy: ModuleType) -> None:
    """Leave out what serves keys, teams, browsers and licences: about a tenth of a request's time."""
    from litellm.proxy.hooks import PROXY_HOOKS

    PROXY_HOOKS.clear()
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
        async def async_pre_call_hook(self, user_api_key_dict: Any, cache: Any, data: Any, call_type: str) -> None:
            holder = current.get(None)
            if holder is None or call_type not in wire.CALLS:
                raise _refusal(RequestError(f"the gateway does not serve {call_type}"))
            headers = (data.get("proxy_server_request") or {}).get("headers") or {}
            try:
                holder.exchange = await run(gateway.begin, call_type, data, headers.get(wire.SESSION_HEADER))
                if gateway.alone and not data.get("stream"):
                    # else the proxy would prepare its own record of the answer, which nobody reads
                    data["litellm_logging_obj"].claim_async_success_log()
            except (RequestError, NoEligibleModelError, BudgetExceededError) as exc:
                raise _refusal(exc) from exc

        async def async_pre_call_deployment_hook(self, kwargs: Any, call_type: Any) -> None:
            exchange = _exchange()
            if exchange is not None and _is_outermost(exchange, call_type):
                gateway.started(exchange, kwargs["model_info"]["id"])

        async def async_post_call_failure_deployment_hook(
            self, request_data: Any, exception: Exception, call_type: Any, fallback_depth: int | None = None
        ) -> None:
            exchange = _exchange()
            if exchange is not None and _is_outermost(exchange, call_type):
                await asyncio.sleep(await run(gateway.failed, exchange, exception))

        async def async_post_call_success_hook(self, data: Any, user_api_key_dict: Any, response: Any) -> Any:
            exchange = _exchange()
            if exchange is None:
                return None
            gateway.answered(exchange, response, _hidden(response))
            return await gateway.checked(exchange, response, lambda model: _call_again(exchange, data, model))

        async def async_log_success_event(self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any) -> None:
            exchange = _exchange()
            if exchange is not None and not exchange.closed and kwargs.get("stream"):
                gateway.answered(exchange, response_obj, _hidden(response_obj))
                gateway.close(exchange)

        async def async_post_call_response_headers_hook(
            self, data: Any, user_api_key_dict: Any, response: Any, request_headers: Any = None,
            litellm_call_info: Any = None,
        ) -> dict[str, str]:  # fmt: skip
            exchange = _exchange()
            if exchange is None:
                return {}
            _name_model(response, exchange.calling)
            return response_headers(exchange)

        async def async_post_call_failure_hook(
            self, request_data: Any, original_exception: Any, user_api_key_dict: Any, traceback_str: str | None = None
        ) -> None:
            exchange = _exchange()
            if exchange is not None and not exchange.closed:
                _explain(exchange, original_exception)
                gateway.close(exchange)

    return Hook()


def _is_outermost(exchange: Exchange, call_type: Any) -> bool:
    """Whether a call is the attempt itself, not one inside it: messages to another provider become completions."""
    return getattr(call_type, "value", call_type) == exchange.call


def _refusal(exc: Exception) -> Exception:
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
    status, message, _ = failure_of(exchange)
    log.warning("decision %s: %s", exchange.decision.decision_id, message.partition(". ")[0])
    with contextlib.suppress(AttributeError):
        exc.status_code, exc.message = status, message


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


async def _call_again(exchange: Exchange, data: Mapping[str, Any], model: str) -> Any:
    """Send the client's request to another model, through the proxy's own router."""
    from litellm.proxy import proxy_server

    own = ("model", "stream", "metadata", "fallbacks")
    kept = {name: data[name] for name in data["proxy_server_request"]["body"] if name in data and name not in own}
    call = getattr(proxy_server.llm_router, exchange.call)
    return await call(model=model, fallbacks=[{"*": exchange.following}], **kept)


def _name_streams(proxy: ModuleType) -> None:
    """Have streams name the model that was routed to, where the proxy would name what the client asked for.

    It asks for the name once, when a stream begins, in these two functions.
    """
    from litellm.proxy.common_request_processing import ProxyBaseLLMRequestProcessing as Processing

    try:
        openai_stream, anthropic_stream = proxy.select_data_generator, Processing.async_sse_data_generator
    except AttributeError as exc:
        raise GatewayError(f"this litellm has no {exc.name}; run: pip install 'router-ml[gateway]'") from exc

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
            inner = getattr(event, "response", None)
            if getattr(inner, "model", None) is not None:  # a copy: the proxy prices the event that it keeps
                event = event.model_copy(update={"response": inner.model_copy(update={"model": name})})
            yield event
    finally:
        if hasattr(events, "aclose"):
            await events.aclose()


def _add_routes(gateway: Gateway, proxy: ModuleType) -> None:
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
            raise _refusal(exc) from exc

    async def feedback(request: Request) -> Response:
        try:
            gateway.feedback(await read_body(request))
        except (RequestError, OutcomeLogError) as exc:
            raise _refusal(exc) from exc
        return JSONResponse({"status": "accepted"}, status_code=202)

    async def metrics() -> Response:
        return Response(gateway.live.telemetry.exposition(), media_type="text/plain; version=0.0.4")

    # annotations are text in this module, and the names they need are known in this function alone
    for endpoint in (route, feedback):
        endpoint.__annotations__["request"] = Request
    guard = [Depends(user_api_key_auth)]
    for path, method, endpoint in (
        ("/v1/route", "POST", route), ("/v1/feedback", "POST", feedback), ("/metrics", "GET", metrics),
    ):  # fmt: skip
        proxy.app.add_api_route(path, endpoint, methods=[method], dependencies=guard, response_model=None)
