"""How another process makes the same environment: a reference that it can import.

    data = pack(spec)          here
    make = unpack(data)()      there

A spec from the registry, with nothing wrapped around its sessions, is built there again
from its family and options. For any other, `make` itself has to be importable: a function
or class at the top of a module, or a `functools.partial` of one.

Invariant: what another process makes is what `spec.make` makes, or `pack` refuses.

Not here: the process (`worker.process`).
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Mapping
from typing import Any

from ..engine.errors import ConfigError
from .base import Environment, EnvSpec, Option

Make = Callable[[], Environment]


def pack(spec: EnvSpec) -> bytes:
    """Put into bytes how to make a session of the environment.

    Raises:
        ConfigError: another process cannot import what makes it; says what to do.
    """
    buffer = io.BytesIO()
    try:
        _Pickler(buffer).dump(importable(spec))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"{spec.id} cannot run in a worker process, which has to import what makes it: "
            f"{error}. Make sessions by a function or class at the top of a module (or a "
            'functools.partial of one), or choose the cost "thread"'
        ) from None
    return buffer.getvalue()


def unpack(data: bytes) -> Make:
    """What `pack` put into bytes, imported. From one's own engine only.

    Raises whatever importing the environment's module raises.
    """
    make: Make = pickle.loads(data)  # noqa: S301 (from the process that started this one)
    return make


def importable(spec: EnvSpec) -> Make:
    """`spec.make`, or the same thing as the registry would build it again."""
    origin = spec.origin
    if origin is not None and origin.make is spec.make:
        return Rebuilt(origin.build, origin.id, dict(origin.options))
    return spec.make


class Rebuilt:
    """Makes sessions of a family with settled options; pickled as family and options."""

    def __init__(
        self, build: Callable[..., EnvSpec], id: str, options: Mapping[str, Option]
    ) -> None:
        self._recipe = (build, id, options)
        self._make: Make | None = None

    def __call__(self) -> Environment:
        """Make a session."""
        if self._make is None:
            build, id, options = self._recipe
            self._make = build(id=id, **options).make
        return self._make()

    def __reduce__(self) -> tuple[type[Rebuilt], tuple[Any, ...]]:
        """Build it again where it is unpickled."""
        return Rebuilt, self._recipe


class _Pickler(pickle.Pickler):
    """Refuses what only this process can find."""

    def reducer_override(self, thing: Any) -> Any:
        """Called for each function and class, among others."""
        if getattr(thing, "__module__", "") == "__main__" and hasattr(thing, "__qualname__"):
            raise pickle.PicklingError(f"{thing.__qualname__} is defined in the script that is run")
        return NotImplemented
