"""What many tests need."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import settings
from postgres_server import binaries

# litellm would fetch its price map from the network when a test imports it
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")

# the same examples in every run, and no verdict that depends on how busy the machine is
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


def pytest_configure(config: pytest.Config) -> None:
    """Where the servers have to be there, a test that is skipped for want of one would hide what it should show."""
    if os.environ.get("ROUTER_ML_TEST_SERVERS") == "required":
        found = {"postgresql": binaries() is not None, "redis-server": shutil.which("redis-server") is not None}
        if not all(found.values()):
            raise pytest.UsageError(f"install {[name for name, there in found.items() if not there]}")


@pytest.fixture(scope="session")
def router_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a small router trained on simulated outcomes; its pool is that of ``training.simulate``."""
    from training.fitting import train_router
    from training.simulate import World

    path = tmp_path_factory.mktemp("trained") / "router"
    train_router(World(7).sample(300).table, path)
    return path
