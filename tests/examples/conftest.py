"""The examples as modules, and a model that answers some episodes and never the others."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import rollwave
from rollwave.actors.backends.base import Done
from rollwave.actors.backends.scripted import ScriptedBackend
from rollwave.actors.protocol import Generate

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


class HalfSilentBackend(ScriptedBackend):
    """Answers first attempts at once, and leaves second ones waiting for ever."""

    def __init__(self) -> None:
        super().__init__(takes_tokens=False, answer=lambda _: "Thought:\nx\n\nAction:\ninventory")
        self.waiting: set[str] = set()
        self.abandoned: set[str] = set()

    def submit(self, request: Generate, done: Done) -> None:
        if "/1/" in request.request_id:
            self.waiting.add(request.request_id)
        else:
            super().submit(request, done)

    def cancel(self, request_id: str) -> None:
        if request_id in self.waiting:
            self.waiting.remove(request_id)
            self.abandoned.add(request_id)
        super().cancel(request_id)


@pytest.fixture
def half_silent() -> tuple[HalfSilentBackend, rollwave.PolicySource]:
    """One backend, and the policy source that serves it."""
    backend = HalfSilentBackend()
    source = rollwave.PolicySource(kind="model", name="half", make_backend=lambda _v, _p: backend)
    return backend, source


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Load one of `examples/` as a module; they are scripts, not a package."""

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        return module

    return load
