"""`docs/cli.md` is complete: every command, option and settings key of the code is in it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import typer
from rollwave.actors.config import CampaignConfig
from rollwave.cli.main import COMMANDS, build

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")


def section(name: str) -> str:
    """Give the section of a command; `rollout` and `evaluate` share one."""
    parts = re.split(r"^## ", PAGE, flags=re.MULTILINE)
    (found,) = [part for part in parts if re.search(rf"\b{name}\b", part.splitlines()[0])]
    return found


def options(command: object) -> Iterator[str]:
    """Give the long options of a command and of the commands below it."""
    for parameter in getattr(command, "params", []):
        yield from (word for word in parameter.opts if word.startswith("--"))
    for below in getattr(command, "commands", {}).values():
        yield from options(below)


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_option_is_documented(name: str) -> None:
    command = typer.main.get_group(build(name)).commands[name]
    missing = {
        option
        for option in options(command)
        if not re.search(rf"{option}\b", section(name)) and option != "--json"
    }
    assert missing == set()


@pytest.mark.parametrize("name", list(COMMANDS))
def test_the_overview_lists_every_command(name: str) -> None:
    assert re.search(rf"^rollwave {name} ", PAGE, flags=re.MULTILINE)


def keys(kind: type) -> Iterator[str]:
    """Give the names of a settings class and of those inside it."""
    for field in msgspec.structs.fields(kind):
        yield field.name
        for inner in getattr(field.type, "__args__", (field.type,)):
            if isinstance(inner, type) and issubclass(inner, msgspec.Struct):
                yield from keys(inner)


def test_every_setting_is_documented() -> None:
    names = set(keys(CampaignConfig))
    assert {"lr", "rank", "waves"} <= names  # the walk reaches the inner classes
    text = section("evolve")
    assert {name for name in names if not re.search(rf"\b{name}\b", text)} == set()
