"""Hosts with real worker processes, closed with the test that opened them."""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from rollwave.engine.child import ChildSpec
from rollwave.engine.system import ActorSystem
from rollwave.envs.base import EnvSpec
from rollwave.envs.worker.host import Owner, WorkerHost
from rollwave.envs.worker.limits import WorkerLimits

OpenHost = Callable[..., AbstractAsyncContextManager[WorkerHost]]


@pytest.fixture
def troubled(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module `troubled`, which worker processes can import too."""
    monkeypatch.syspath_prepend(Path(__file__).parent)
    return importlib.import_module("troubled")


@pytest.fixture
def open_host() -> OpenHost:
    """Opens a host in an actor system of its own, with one worker unless told otherwise."""

    @asynccontextmanager
    async def opened(spec: EnvSpec, **limits: Any) -> AsyncIterator[WorkerHost]:
        with trio.fail_after(60):
            async with ActorSystem(shutdown_seconds=20) as system:
                owner = Owner()
                await system.start(ChildSpec("workers", owner.actor, stop_timeout=15))
                limits = {"workers": 1} | limits
                yield WorkerHost(owner, spec, WorkerLimits(**limits))

    return opened
