"""``router-ml serve``: the LiteLLM proxy (extra ``gateway``), configured from the pool, with the router in it.

Every worker process builds its own ``app`` from the settings that ``serve`` leaves in the environment. Keys are in the
environment too and nowhere else: the generated configuration names variables, not values.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import secrets
import signal
import stat
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from router_ml.cli import LOG_PROMPTS
from router_ml.completion import TIMEOUT_S
from router_ml.errors import GatewayError, MissingExtraError
from router_ml.gateway import ALIASES, Gateway
from router_ml.gateway_door import MAX_BODY_BYTES, Door
from router_ml.gateway_proxy import MASTER_KEY, install
from router_ml.health import Health
from router_ml.ledger import Ledger
from router_ml.live import DAY_S, LiveRouter
from router_ml.outcome_rows import Prompts
from router_ml.outcomes import OutcomeLog
from router_ml.pool import ModelPool, ModelSpec
from router_ml.router import Router
from router_ml.shared_state import SharedState
from router_ml.telemetry import OFF, Prometheus

SETTINGS = "ROUTER_ML_GATEWAY"
_SHORTEST_KEY = 8  # the proxy refuses shorter ones
# The proxy would fetch price maps and news, and open its documentation, its pages and its log of everything.
QUIET = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS": "True",
    "LITELLM_LOCAL_AUTOROUTER_PRESETS": "True", "LITELLM_LOCAL_BLOG_POSTS": "True",
    "LITELLM_LOCAL_POLICY_TEMPLATES": "True", "LITELLM_TELEMETRY": "False", "DISABLE_ADMIN_UI": "True",
    "NO_DOCS": "True", "NO_REDOC": "True", "NO_OPENAPI": "True",
}  # fmt: skip

_TAKEN = {"tools": ("tools", "tool_choice"), "json_schema": ("response_format",)}  # ability -> parameters


@dataclass(frozen=True, slots=True)
class Settings:
    """What a worker process needs to know.

    :param pool: path of pool.yaml. :param router: folder of the router; None: the bundled one.
    :param log: URL of the outcome log; None: nothing is logged. :param log_prompts: what it keeps of a request's text.
    :param redis: URL of the state that workers share.
    :param proxy_config: path of the generated configuration of the proxy.
    :param max_body_bytes: longest request body that is read.
    """

    pool: str
    router: str | None = None
    log: str | None = None
    log_prompts: Prompts = "hash"
    redis: str | None = None
    proxy_config: str = ""
    max_body_bytes: int = MAX_BODY_BYTES
    metrics: bool = False

    @classmethod
    def from_environment(cls) -> Settings:
        """:raises GatewayError: if ``serve`` did not leave them there."""
        try:
            return cls(**json.loads(os.environ[SETTINGS]))
        except (KeyError, TypeError, ValueError) as exc:
            raise GatewayError(f"{SETTINGS} does not hold the settings; start with router-ml serve") from exc

    def to_environment(self) -> None:
        os.environ[SETTINGS] = json.dumps(dataclasses.asdict(self))


def proxy_config(pool: ModelPool, *, alone: bool = True) -> dict[str, Any]:
    """The proxy's configuration: one deployment for each candidate, and the alias by which clients ask to be routed.

    The alias needs a deployment to be listed; none is ever called by it, because the hook chooses before that.

    :param alone: whether there is one key, and no database of keys.
    """
    fallback = pool.spec(pool.escalation_model)
    models = [_deployment(spec, spec.name) for spec in pool.models] + [_deployment(fallback, ALIASES[0])]
    return {
        "model_list": models,
        "litellm_settings": {
            "drop_params": True, "request_timeout": TIMEOUT_S, "suppress_debug_info": True, **_cache(pool),
            # what every OpenAI-compatible server has; the other way, OpenAI's responses, many have not
            "use_chat_completions_url_for_anthropic_messages": True,
        },
        "router_settings": {
            "model_group_alias": dict.fromkeys(ALIASES[1:], ALIASES[0]),
            # the gateway tells the proxy, attempt by attempt, whether to try again
            "num_retries": 0,
            "max_fallbacks": len(pool.models) * (1 + pool.fallback.max_retries),
            # the router's own breaker decides that, for every kind of caller alike
            "disable_cooldowns": True,
        },
        "general_settings": {
            "master_key": f"os.environ/{MASTER_KEY}",
            **({"custom_auth": "router_ml.gateway_proxy.authenticate"} if alone else {}),
        },
    }  # fmt: skip


def _cache(pool: ModelPool) -> dict[str, Any]:
    """The response cache, which is litellm's."""
    if pool.cache.type == "off":
        return {}
    arguments = dict(pool.cache.arguments() or {})
    if "url" in arguments:
        arguments["url"] = f"os.environ/{pool.cache.url_env}"  # it may hold a password
    return {"cache": True, "cache_params": arguments}


def _deployment(spec: ModelSpec, name: str) -> dict[str, Any]:
    params: dict[str, Any] = {"model": spec.call_name, **spec.params}
    if spec.api_base is not None:
        params["api_base"] = spec.api_base
    # the pool knows better than litellm's table what a server takes
    known = [names for ability, names in _TAKEN.items() if ability in spec.abilities]
    if known:
        params["allowed_openai_params"] = [name for names in known for name in names]
    if spec.api_key_env is not None:
        params["api_key"] = f"os.environ/{spec.api_key_env}"
    # by this id the proxy says which deployment answered
    return {"model_name": name, "litellm_params": params, "model_info": {"id": name}}


def ensure_master_key(key_file: Path) -> Path | None:
    """See to it that ``LITELLM_MASTER_KEY`` is set: from the environment, from the key file, or new in that file.

    :return: the key file, if the key is in it.
    :raises GatewayError: if the key is too short, or others than its owner may read or change the file.
    """
    given = os.environ.get("ROUTER_ML_MASTER_KEY") or os.environ.get(MASTER_KEY)
    key = given or _stored_key(key_file)
    if len(key) < _SHORTEST_KEY:
        raise GatewayError(f"the master key has {len(key)} characters; expected at least {_SHORTEST_KEY}")
    os.environ[MASTER_KEY] = key
    return None if given else key_file


def _stored_key(path: Path) -> str:
    with contextlib.suppress(FileExistsError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # O_EXCL: nobody can have put a file or a link there that others read
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(f"sk-{secrets.token_urlsafe(32)}\n")
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    with os.fdopen(descriptor, encoding="ascii") as file:
        facts = os.fstat(file.fileno())
        if facts.st_uid != os.geteuid() or stat.S_IMODE(facts.st_mode) & 0o077:
            raise GatewayError(f"others than its owner may use {path}; run: chmod 600 {path}, and change the key in it")
        return file.read().strip()


def app() -> Door:
    """The gateway as an ASGI application, for uvicorn's ``factory``."""
    settings = Settings.from_environment()
    os.environ.update(QUIET | {"CONFIG_FILE_PATH": settings.proxy_config})
    try:
        from litellm.proxy import proxy_server
    except ImportError as exc:
        raise MissingExtraError("litellm's proxy", "gateway") from exc
    _hush()
    live = live_router(settings)
    budgets = live.router.pool.budgets
    capped = budgets.per_day_usd is not None or bool(budgets.per_tag_day_usd)
    gateway = Gateway(live, waits=capped and settings.redis is not None, alone=not os.environ.get("DATABASE_URL"))
    install(gateway, proxy_server)
    return Door(gateway, proxy_server.app, os.environ[MASTER_KEY] if gateway.alone else None, settings.max_body_bytes)


def _hush() -> None:
    """Keep prompts and keys out of the log: what others say of an error may quote them.

    What happened to a request is said by ``gateway``.
    """
    for name in ("LiteLLM", "LiteLLM Proxy", "LiteLLM Router"):
        logging.getLogger(name).setLevel(logging.CRITICAL)

    def without_message(record: logging.LogRecord) -> bool:
        if record.exc_info:
            kind = record.exc_info[0]
            record.msg, record.args = "%s: %s", (record.getMessage().strip(), kind.__name__ if kind else "an error")
            record.exc_info = record.exc_text = None
        return True

    logging.getLogger("uvicorn.error").addFilter(without_message)


def live_router(settings: Settings) -> LiveRouter:
    """The router in service, by the settings.

    :raises RouterError: if a part of it cannot be opened.
    """
    router = Router.load(settings.router, pool=ModelPool.from_yaml(settings.pool))
    state = SharedState.of(settings.redis)
    health, ledger = Health(router.pool, state=state), Ledger(router.pool.budgets, state=state)
    log = None if settings.log is None else OutcomeLog(settings.log, log_prompts=settings.log_prompts)
    if log is not None:
        ledger.seed(log.spent(since=time.time() // DAY_S * DAY_S))
    telemetry = Prometheus() if settings.metrics else OFF
    return LiveRouter(router, log=log, health=health, ledger=ledger, telemetry=telemetry)


@click.command("serve")
@click.option("--config", "pool", required=True, type=click.Path(exists=True, dir_okay=False), help="pool.yaml.")
@click.option("--router", help="Folder of the router; without it the bundled one.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=4000, show_default=True, type=click.IntRange(1, 65535))
@click.option(
    "--log", metavar="URL", envvar="ROUTER_ML_LOG", show_envvar=True, help="Outcome log, as sqlite:///outcomes.db."
)
@LOG_PROMPTS
@click.option("--key-file", type=click.Path(path_type=Path), help="Where the master key is or will be.")
@click.option("--redis", metavar="URL", envvar="ROUTER_ML_REDIS", show_envvar=True, help="Shares breakers and budgets.")
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1), help="Processes.")
@click.option("--metrics", is_flag=True, help="Serve /metrics for Prometheus, of the process that is asked.")
@click.option("--max-body-mb", default=20.0, show_default=True, type=click.FloatRange(0, min_open=True))
def serve(
    pool: str, router: str | None, host: str, port: int, log: str | None, log_prompts: Prompts,
    key_file: Path | None, redis: str | None, workers: int, metrics: bool, max_body_mb: float,
) -> None:  # fmt: skip
    """Start an OpenAI- and Anthropic-compatible server that routes every request for the model "auto".

    The master key comes from LITELLM_MASTER_KEY or ROUTER_ML_MASTER_KEY; without one it is generated into a file that
    only you can read.
    """
    try:
        import uvicorn
    except ImportError as exc:
        raise MissingExtraError("uvicorn", "gateway") from exc
    configuration = proxy_config(ModelPool.from_yaml(pool), alone=not os.environ.get("DATABASE_URL"))
    used = ensure_master_key(key_file or Path(click.get_app_dir("router_ml")) / "gateway.key")
    if used is not None:
        click.echo(f"master key: in {used}")
    with tempfile.TemporaryDirectory(prefix="router_ml-") as folder:
        path = Path(folder) / "proxy.yaml"
        path.write_text(json.dumps(configuration), encoding="utf-8")  # JSON is YAML
        settings = Settings(pool, router, log, log_prompts, redis, str(path), int(max_body_mb * 1024 * 1024), metrics)
        settings.to_environment()
        if workers > 1:  # a worker that cannot start is started again for ever
            log_of = live_router(settings).log
            if log_of is not None:
                log_of.close()
        click.echo(f"listening on http://{host}:{port}")
        # uvicorn raises the signal that ended it once more; the folder is to be removed first
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        uvicorn.run(
            "router_ml.gateway_server:app", factory=True, host=host, port=port, workers=workers, log_level="warning",
            access_log=False, server_header=False,
        )  # fmt: skip
