"""Other packages' environments: found by their entry points, loaded when they are wanted."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from rollwave.engine.errors import ConfigError, UnknownEnvironment
from rollwave.envs import registry
from rollwave.envs.base import EnvFamily
from rollwave.envs.registry import GROUP, Registry

WORLD = """
from rollwave.envs.base import EnvFamily, EnvSpec
from rollwave.envs.maze import families

def build(*, id, size):
    return EnvSpec(id=id, make=families()[0].build(id=id).make, splits={"test": range(size)})

FAMILY = EnvFamily(id="far-world-v1", summary="from elsewhere", build=build, options={"size": 3})
OTHER = EnvFamily(id="other-v1", summary="", build=build, options={"size": 3})
NUMBER = 3
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed distribution with a world, as pip would leave it."""
    (tmp_path / "far_world.py").write_text(WORLD)
    about = tmp_path / "far_world-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: far-world\nVersion: 1.0\n")
    points = f"[{GROUP}]\nfar-world-v1 = far_world:FAMILY\n"
    (about / "entry_points.txt").write_text(points)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_an_installed_world_is_resolved_with_its_options(package: Path) -> None:
    found = Registry()
    assert "far-world-v1" in found.ids()
    assert found.resolve("far-world?size=5").id == "far-world-v1?size=5"
    assert len(found.resolve("far-world").tasks("test")) == 3
    assert "far-world-v1" in [family.id for family in found.families()]


def test_the_command_line_finds_it(package: Path) -> None:
    command = "from rollwave.cli.main import main; raise SystemExit(main(['envs', 'list']))"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(package)!r}); {command}"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env={"COLUMNS": "200"},
    )
    assert "far-world-v1" in done.stdout


def test_a_built_in_world_is_resolved_without_looking_at_packages() -> None:
    def never() -> list[EntryPoint]:
        raise AssertionError("nobody asked for another package's world")

    assert Registry(installed=never).resolve("maze-v1").id == "maze-v1"


def entry(name: str, value: str) -> Callable[[], list[EntryPoint]]:
    return lambda: [EntryPoint(name, value, GROUP)]


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("gone-v1", "no_such_module:FAMILY", "cannot be loaded from no_such_module:FAMILY"),
        ("far-world-v1", "far_world:LOST", "mend or uninstall that package"),
        ("far-world-v1", "far_world:NUMBER", "far_world:NUMBER is int, not it"),
        ("far-world-v1", "far_world:OTHER", "is the family other-v1, not it"),
    ],
)
def test_a_package_with_a_defect_is_named(
    package: Path, name: str, value: str, complaint: str
) -> None:
    found = Registry(installed=entry(name, value))
    with pytest.raises(ConfigError, match=complaint):
        found.resolve(name)
    with pytest.raises(UnknownEnvironment, match="did you mean"):
        found.resolve(f"{name[:-3]}z")


def resolve_family(id: str) -> EnvFamily:
    return next(family for family in registry.families() if family.id == id)


def test_no_package_takes_the_place_of_ours(package: Path) -> None:
    found = Registry(installed=entry("maze-v1", "far_world:FAMILY"))
    assert found.resolve("maze-v1").tasks("test")
    mine = replace(resolve_family("maze-v1"), id="far-world-v1")
    found = Registry(installed=registry._installed)
    found.register(mine)
    assert found._family("far-world-v1") is mine
