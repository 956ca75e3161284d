"""What many tests need."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

# the same examples in every run, and no verdict that depends on how busy the machine is
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def router_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a small router trained on simulated outcomes; its pool is that of ``training.simulate``."""
    from training.fitting import train_router
    from training.simulate import World

    path = tmp_path_factory.mktemp("trained") / "router"
    train_router(World(7).sample(300).table, path)
    return path
