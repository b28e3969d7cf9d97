"""Ids and options: canonical spelling, nearest names, typed options, lazy loading."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rollwave.engine.errors import ConfigError, UnknownEnvironment
from rollwave.envs import registry as registry_module
from rollwave.envs.base import EnvFamily, EnvSpec, Option
from rollwave.envs.registry import BUILT_IN, Registry, families, resolve


def family(id: str, **options: Option) -> EnvFamily:
    """A family whose spec tells its settled options through `turn_limit`'s neighbour, `make`."""

    def build(*, id: str, **settled: Option) -> EnvSpec:
        return EnvSpec(id=id, make=lambda: settled, splits={"train": range(1)})

    return EnvFamily(id=id, summary="for tests", build=build, options=options)


def registry(*members: EnvFamily) -> Registry:
    made = Registry(built_in={})
    for member in members:
        made.register(member)
    return made


def test_the_built_in_table_is_what_the_packages_offer() -> None:
    offered = {member.id for member in families()}
    assert offered >= set(BUILT_IN)
    for id in BUILT_IN:
        spec = resolve(id)
        assert spec.id == id
        assert spec.make() is not spec.make()


def test_a_bare_name_is_its_newest_version_by_number() -> None:
    worlds = registry(family("maze-v2"), family("maze-v10"), family("maze-grid-v11"))
    assert worlds.resolve("maze").id == "maze-v10"
    assert worlds.resolve("maze-v2").id == "maze-v2"


@pytest.mark.parametrize(
    ("asked", "hint"),
    [
        ("maze-gird", "maze-grid-v1"),
        ("textcraft-v9", "textcraft-v1"),
        ("Wordle", "wordle-v1"),
        ("qqq", "there are: .*maze-grid-v1, maze-v1"),
        ("", "there are: "),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(asked: str, hint: str) -> None:
    with pytest.raises(UnknownEnvironment, match=hint):
        resolve(asked)


def test_options_are_typed_by_their_defaults() -> None:
    worlds = registry(family("world-v1", size=5, share=0.5, name="a b", fast=False))
    spec = worlds.resolve("world?fast=TRUE&size=7&share=1&name=x%26y%3D")
    assert spec.make() == {"size": 7, "share": 1.0, "name": "x&y=", "fast": True}
    assert spec.id == "world-v1?size=7&share=1.0&name=x%26y%3D&fast=true"


def test_defaults_do_not_show_in_the_id() -> None:
    assert resolve("maze-grid-v1?size=5&loops=0.5&style=terse").id == "maze-grid-v1?style=terse"
    assert resolve("maze-grid?size=5").id == "maze-grid-v1"


@pytest.mark.parametrize(
    ("query", "complaint"),
    [
        ("siz=5", "did you mean size"),
        ("zzz=5", "it has: size"),
        ("size=five", "option size takes a whole number, not 'five'"),
        ("size=", "option size takes a whole number"),
        ("size=5.0", "option size takes a whole number"),
        ("share=nan", "option share takes a number"),
        ("share=1e999", "option share takes a number"),
        ("fast=1", "option fast takes true or false"),
        ("size=5&size=6", "option size is given twice"),
        ("size", "write options as"),
        ("size=5&&", "write options as"),
    ],
)
def test_a_bad_option_is_named(query: str, complaint: str) -> None:
    worlds = registry(family("world-v1", size=5, share=0.5, fast=False))
    with pytest.raises(ConfigError, match=complaint):
        worlds.resolve(f"world-v1?{query}")


def test_a_family_without_options_says_so() -> None:
    with pytest.raises(ConfigError, match="it has none"):
        registry(family("world-v1")).resolve("world?a=1")


@given(
    size=st.integers(),
    share=st.floats(allow_nan=False, allow_infinity=False),
    name=st.text(st.characters(exclude_categories=["Cs"])),
    fast=st.booleans(),
)
def test_the_canonical_id_resolves_to_itself(
    size: int, share: float, name: str, fast: bool
) -> None:
    worlds = registry(family("world-v1", size=5, share=0.5, name="", fast=False))
    given_id = registry_module.urlencode(
        {"fast": str(fast).lower(), "size": size, "share": share, "name": name}
    )
    spec = worlds.resolve(f"world?{given_id}")
    again = worlds.resolve(spec.id)
    assert again.id == spec.id
    assert again.make() == spec.make() == {"size": size, "share": share, "name": name, "fast": fast}


@given(st.text(max_size=30))
def test_any_text_resolves_or_is_a_config_error(text: str) -> None:
    worlds = registry(family("world-v1", size=5))
    for asked in (text, f"world-v1{text}", f"world-v1?{text}"):
        with suppress(ConfigError):
            assert worlds.resolve(asked).id.startswith("world-v1")


@pytest.mark.parametrize("id", ["world", "World-v1", "world-v0", "world-v01", "-v1", "a--b-v1", ""])
def test_an_id_is_a_lower_case_name_and_a_version(id: str) -> None:
    with pytest.raises(ConfigError, match="my-env-v1"):
        registry().register(family(id))


def test_an_id_is_given_once() -> None:
    mine = family("world-v1")
    worlds = registry(mine)
    worlds.register(mine)  # the same object again: nothing to do
    with pytest.raises(ConfigError, match="registered already"):
        worlds.register(family("world-v1"))
    with pytest.raises(ConfigError, match="registered already"):
        Registry().register(family("maze-v1"))


def test_resolving_one_world_loads_no_other() -> None:
    script = (
        "import sys; from rollwave.envs.registry import resolve; resolve('maze');"
        "print([name for name in sys.modules if 'wordle' in name or 'textcraft' in name"
        " or 'hypothesis' in name])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"


def test_a_package_that_lost_its_family_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_module, "import_module", lambda *_: SimpleNamespace(families=list))
    with pytest.raises(KeyError):
        Registry({"lost-v1": "lost"}).resolve("lost-v1")
