"""Rollwave: thousands of LLM-agent sessions under one supervisor, and a learner between the waves.

The names below are the public face; each is loaded from where it lives when it is first
used. Everything heavy (torch, transformers, vLLM, pyarrow) loads later still, when a model
or a store is really opened.

Invariant: `import rollwave` loads nothing but this file.

Not here: the packages themselves (`rollwave.engine`, `rollwave.envs`, …), whose modules
have more names than these.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"

__all__ = [
    "ActorDead",
    "AsyncioEngine",
    "BackendDied",
    "BackendError",
    "ChatMessage",
    "ConfigError",
    "DeadlineExceeded",
    "EmptyWave",
    "Engine",
    "EngineSettings",
    "EnvFamily",
    "EnvSpec",
    "Environment",
    "EnvironmentFault",
    "Fault",
    "LearnerError",
    "MissingDependency",
    "Outcome",
    "PolicySource",
    "RestartLimitExceeded",
    "Rollout",
    "RollwaveError",
    "RunLocked",
    "Sampling",
    "StepResult",
    "StoreError",
    "Task",
    "TemplateError",
    "TooManyFaults",
    "Trajectory",
    "Turn",
    "UnknownEnvironment",
    "Wave",
    "WeightSwapFailed",
    "families",
    "open_engine",
    "open_engine_asyncio",
    "policy_source",
    "read_wave",
    "register",
    "resolve",
]

if TYPE_CHECKING:
    from .actors.embedding import Engine, EngineSettings, Rollout, open_engine
    from .actors.guest import AsyncioEngine, open_engine_asyncio
    from .actors.policy_source import PolicySource, policy_source
    from .actors.protocol import Sampling
    from .engine.errors import (
        ActorDead,
        BackendDied,
        BackendError,
        ConfigError,
        DeadlineExceeded,
        EmptyWave,
        EnvironmentFault,
        LearnerError,
        MissingDependency,
        RestartLimitExceeded,
        RollwaveError,
        RunLocked,
        StoreError,
        TemplateError,
        TooManyFaults,
        UnknownEnvironment,
        WeightSwapFailed,
    )
    from .engine.store import read_wave
    from .engine.trajectory import ChatMessage, Fault, Outcome, Trajectory, Turn, Wave
    from .envs.base import EnvFamily, Environment, EnvSpec, StepResult, Task
    from .envs.registry import families, register, resolve
else:
    # Hidden from type checkers, which would let any name through. The keys are modules;
    # a test holds them and the imports above to each other.
    _HOMES = {
        "actors.embedding": ("Engine", "EngineSettings", "Rollout", "open_engine"),
        "actors.guest": ("AsyncioEngine", "open_engine_asyncio"),
        "actors.policy_source": ("PolicySource", "policy_source"),
        "actors.protocol": ("Sampling",),
        "engine.store": ("read_wave",),
        "engine.trajectory": ("ChatMessage", "Fault", "Outcome", "Trajectory", "Turn", "Wave"),
        "envs.base": ("EnvFamily", "EnvSpec", "Environment", "StepResult", "Task"),
        "envs.registry": ("families", "register", "resolve"),
    }
    _HOME = {name: module for module, names in _HOMES.items() for name in names}

    def __getattr__(name: str) -> object:
        """Load a public name from where it lives, once; what is left are the errors."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        value = getattr(import_module(f".{_HOME.get(name, 'engine.errors')}", __name__), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
