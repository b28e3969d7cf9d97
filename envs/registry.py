"""The registry: from an environment id to an `EnvSpec`.

An id is `name-vN`, with options as in a URL: `maze-grid-v1?size=7&style=terse`.
A bare name means its newest version. `resolve` settles the options and writes
the id of the spec in one canonical way: full name, options that differ from
their defaults, in the family's own order.

Invariant: equal settings give equal ids, and `resolve(spec.id)` gives the same
spec again.

A built-in family's module is imported when one of its ids is resolved, not
before: resolving a maze loads no recipe table. So are the families of other installed
packages, which name them as entry points:

    [project.entry-points."rollwave.envs"]
    my-world-v1 = "my_package.world:FAMILY"

Not here: what the options mean (each family's `build`), or sessions.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Final
from urllib.parse import parse_qsl, urlencode

from ..engine.errors import ConfigError, UnknownEnvironment
from .base import EnvFamily, EnvSpec, Option, Origin

BUILT_IN: Final[Mapping[str, str]] = {
    "alfworld-v1": "alfworld",
    "babyai-v1": "babyai",
    "maze-grid-v1": "maze",
    "maze-v1": "maze",
    "reasoning-gym-v1": "reasoning_gym",
    "sciworld-v1": "sciworld",
    "textcraft-v1": "textcraft",
    "wordle-fixed-v1": "wordle",
    "wordle-v1": "wordle",
}
"""Id of each built-in family and the package, beside this file, whose `families()` has it."""

GROUP: Final = "rollwave.envs"
"""Entry points of this group name families of other packages, by id."""

_ID: Final = re.compile(r"(?P<name>[a-z0-9]+(?:-[a-z0-9]+)*?)-v(?P<version>[1-9][0-9]*)")


def _installed() -> Iterable[EntryPoint]:
    return entry_points(group=GROUP)


class Registry:
    """A set of families. The module's functions use one that serves the whole process."""

    def __init__(
        self,
        built_in: Mapping[str, str] = BUILT_IN,
        installed: Callable[[], Iterable[EntryPoint]] = _installed,
    ) -> None:
        self._built_in = dict(built_in)
        self._families: dict[str, EnvFamily] = {}
        self._installed = installed
        self._entries: dict[str, EntryPoint] | None = None  # read when first needed

    def register(self, family: EnvFamily) -> None:
        """Add a family. Adding the same object again changes nothing.

        Raises:
            ConfigError: the id is not `name-vN`, or is taken.
        """
        if not _ID.fullmatch(family.id):
            raise ConfigError(
                f"environment id {family.id!r} must be a lower-case name and a version: my-env-v1"
            )
        if family.id in self._built_in or self._families.get(family.id, family) is not family:
            raise ConfigError(
                f"{family.id} is registered already; a changed world is a new version"
            )
        self._families[family.id] = family

    def ids(self) -> list[str]:
        """All ids, sorted. Imports no family."""
        return sorted(self._built_in.keys() | self._families.keys() | self._others().keys())

    def families(self) -> list[EnvFamily]:
        """All families by id. Imports every one.

        Raises:
            ConfigError: another package's cannot be loaded.
        """
        return [self._family(id) for id in self.ids()]

    def resolve(self, name: str) -> EnvSpec:
        """Settle an id with its options into a spec; or the address of an AgentGym server.

        Raises:
            UnknownEnvironment: no such id; the text gives the nearest one.
            ConfigError: an option is unknown, ill-typed, given twice or out of range.
        """
        if name.startswith(("http://", "https://")):
            return _on_server(name)
        base, mark, query = name.partition("?")
        family = self._family(self._full_id(base))
        given = _options(family, query) if mark else {}
        settled = {**family.options, **given}
        different = {
            key: _spell(value) for key, value in settled.items() if value != family.options[key]
        }
        id = f"{family.id}?{urlencode(different)}" if different else family.id
        spec = family.build(id=id, **settled)
        return replace(spec, origin=Origin(spec.make, family.build, id, settled))

    def _others(self) -> Mapping[str, EntryPoint]:
        """Entry points of other packages by id; a built-in or registered id is not theirs."""
        if self._entries is None:
            self._entries = {entry.name: entry for entry in self._installed()}
        taken = self._built_in.keys() | self._families.keys()
        return {id: entry for id, entry in self._entries.items() if id not in taken}

    def _full_id(self, base: str) -> str:
        if base in self._built_in or base in self._families:
            return base  # without looking at other packages
        ids = self.ids()
        if base in ids:
            return base
        versions = {
            int(match["version"]): id
            for id in ids
            if (match := _ID.fullmatch(id)) and match["name"] == base
        }
        if versions:
            return versions[max(versions)]
        names = {id.rpartition("-v")[0]: id for id in ids} | {id: id for id in ids}
        near = get_close_matches(base.lower(), names, n=1, cutoff=0.5)
        hint = f"did you mean {names[near[0]]}?" if near else f"there are: {', '.join(ids)}"
        raise UnknownEnvironment(f"no environment {base!r}; {hint}")

    def _family(self, id: str) -> EnvFamily:
        if id not in self._families and id not in self._built_in:
            self._families[id] = _load(self._others()[id])
        if id not in self._families:
            module = import_module(f".{self._built_in[id]}", __package__)
            self._families.update({family.id: family for family in module.families()})
        return self._families[id]


def _load(entry: EntryPoint) -> EnvFamily:
    """Import another package's family.

    Raises:
        ConfigError: it cannot be imported, or is not the family that it is named for.
    """
    owner = f" of {entry.dist.name}" if entry.dist is not None else ""
    try:
        found = entry.load()
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"environment {entry.name}{owner} cannot be loaded from {entry.value}: {error}; "
            "mend or uninstall that package"
        ) from error
    if not isinstance(found, EnvFamily) or found.id != entry.name:
        what = f"the family {found.id}" if isinstance(found, EnvFamily) else type(found).__name__
        raise ConfigError(f"environment {entry.name}{owner}: {entry.value} is {what}, not it")
    return found


def _on_server(url: str) -> EnvSpec:
    """A world on an AgentGym server, by its address."""
    from .agentgym.remote import spec_at  # it knows httpx, which takes long to import

    return spec_at(url)


def _options(family: EnvFamily, query: str) -> dict[str, Option]:
    """Read `a=1&b=x` by the types of the family's defaults."""
    given: dict[str, Option] = {}
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True)
    except ValueError:
        raise ConfigError(f"{family.id}: write options as ?name=value&…, not ?{query}") from None
    for key, text in pairs:
        if key not in family.options:
            near = get_close_matches(key, family.options, n=1)
            known = f"did you mean {near[0]}?" if near else "it has: " + ", ".join(family.options)
            raise ConfigError(
                f"{family.id} has no option {key!r}; {known if family.options else 'it has none'}"
            )
        if key in given:
            raise ConfigError(f"{family.id}: option {key} is given twice")
        given[key] = _read(f"{family.id}: option {key}", text, family.options[key])
    return given


def _read(name: str, text: str, default: Option) -> Option:
    """Read one value as the type of its default. bool before int: True is an int."""
    try:
        if isinstance(default, bool):
            return {"true": True, "false": False}[text.lower()]
        if isinstance(default, int):
            return int(text)
        if isinstance(default, float):
            return _finite(text)
    except (KeyError, ValueError):
        kind = type(default).__name__
        raise ConfigError(f"{name} takes {_KINDS[kind]}, not {text!r}") from None
    return text


_KINDS: Final = {"bool": "true or false", "int": "a whole number", "float": "a number"}


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def _spell(value: Option) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


_REGISTRY: Final = Registry()


def register(family: EnvFamily) -> None:
    """Add a family to the process-wide registry. See `Registry.register`."""
    _REGISTRY.register(family)


def resolve(name: str) -> EnvSpec:
    """Settle an environment id into a spec. See `Registry.resolve`."""
    return _REGISTRY.resolve(name)


def families() -> list[EnvFamily]:
    """Every registered family, by id."""
    return _REGISTRY.families()
