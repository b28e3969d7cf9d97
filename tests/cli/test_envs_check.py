"""`rollwave envs check` of several environments over several transports: one table, one JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rollwave.cli import envs
from rollwave.cli.laws import transports
from rollwave.cli.main import main
from rollwave.engine.errors import ConfigError, MissingDependency
from rollwave.envs import registry
from rollwave.envs.base import EnvFamily, Environment, EnvSpec, StepResult, Task
from rollwave.envs.registry import families, resolve
from rollwave.envs.wrappers import Wrapper

TERSE = "maze-grid-v1?size=3"


class Stumbles(Wrapper):
    """Falls at the first step."""

    def step(self, action: str) -> StepResult:
        raise RuntimeError("fell")


def stumbling(*, id: str) -> EnvSpec:
    spec = resolve(TERSE)
    return EnvSpec(
        id=id,
        make=lambda: Stumbles(spec.make()),
        splits=spec.splits,
        turn_limit=spec.turn_limit,
        action_format="raw",
    )


class NeedsJava(Environment):
    """Needs something as soon as it is played."""

    def reset(self, task: Task, seed: int) -> str:
        raise MissingDependency("it needs Java: install it")

    def step(self, action: str) -> StepResult:
        return StepResult("")

    def observation(self) -> str:
        return ""

    def available_actions(self) -> tuple[str, ...]:
        return ()


def needy(*, id: str) -> EnvSpec:
    return EnvSpec(id=id, make=NeedsJava, splits={"test": [0]})


def absent(*, id: str) -> EnvSpec:
    raise MissingDependency("it needs a package: pip install it")


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists a sound world, one that falls over, and two that cannot be had."""
    found = registry.Registry()
    monkeypatch.setattr(registry, "_REGISTRY", found)
    listed = [family for family in found.families() if family.id == "maze-grid-v1"]
    for id, build in (("stumble-v1", stumbling), ("java-v1", needy), ("absent-v1", absent)):
        listed.append(EnvFamily(id=id, summary=id, build=build))
        found.register(listed[-1])
    monkeypatch.setattr(envs, "families", lambda: listed)


def checked(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, Any, str]:
    code = main(["envs", "check", *words, "--json"])
    out, err = capsys.readouterr()
    return code, json.loads(out.splitlines()[-1]) if out else None, err


def test_every_environment_over_every_transport(
    few: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "new" / "laws.json"
    words = ["--all", "--over", "in-process,batched", "--examples", "1", "--out", str(file)]
    code, said, err = checked(capsys, *words)
    assert code == 1
    assert json.loads(file.read_text("utf-8")) == said
    assert [(one["environment"], one["over"], one["verdict"]) for one in said["checks"]] == [
        ("maze-grid-v1", "in-process", "passed"),
        ("maze-grid-v1", "batched", "passed"),
        ("stumble-v1", "in-process", "failed"),
        ("stumble-v1", "batched", "failed"),
        ("java-v1", "in-process", "skipped"),
        ("java-v1", "batched", "skipped"),
        ("absent-v1", "in-process", "skipped"),
        ("absent-v1", "batched", "skipped"),
    ]
    for one in said["checks"]:
        assert bool(one["reason"]) is (one["verdict"] == "skipped") is (not one["laws"])
        for kind in ("held", "skipped", "broken"):
            told = [
                "skipped" if law["skipped"] else "held" if law["held"] else "broken"
                for law in one["laws"]
            ]
            assert one[kind] == told.count(kind)
    assert said["broken"] == sum(one["broken"] for one in said["checks"]) > 0
    assert "needs Java" in said["checks"][4]["reason"]
    assert "stumble-v1 over batched: failed: " in err  # told as it goes


def test_a_failure_is_printed_with_its_actions_and_how_to_find_it_again(
    few: None, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["stumble-v1", "java-v1", "--over", "in-process,http"]
    words += ["--examples", "3", "--seed", "5"]
    assert main(["envs", "check", *words]) == 1
    out, _ = capsys.readouterr()
    assert "skipped all laws: it needs Java: install it (java-v1 over in-process, http)" in out
    for where in ("", " over http"):
        _, found, rest = out.partition(f"BROKEN answers any text{where}\n")
        assert found
        told = rest.partition("BROKEN")[0]
        assert "RuntimeError" in told
        assert "fell" in told
        assert "actions: ['" in told
        flag = " --over http" if where else ""
        assert f"again: rollwave envs check stumble-v1{flag} --examples 3 --seed 5" in told


def test_where_nothing_can_be_checked_that_is_an_error(
    few: None, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = checked(capsys, "java-v1", "--over", "all")
    assert code == 2
    assert "nothing was checked: java-v1: it needs Java: install it" in err


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([], "name the environments to check, or say --all"),
        (["maze-v1", "--all"], "name the environments to check, or say --all"),
        (["maze-v1", "--over", "pigeon"], "there are: in-process, worker, http, batched"),
        (["maze-v1", "--over", ","], "name a transport"),
        (["http://127.0.0.1:1/maze?tasks=26", "--over", "http"], "on a server already"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["envs", "check", *words]) == 2
    assert complaint in capsys.readouterr().err


def test_transports_are_named_once() -> None:
    assert transports("all") == ["in-process", "worker", "http", "batched"]
    assert transports("http, worker,http") == ["http", "worker"]
    with pytest.raises(ConfigError):
        transports("")


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("id", [family.id for family in families()])
def test_the_built_in_worlds_keep_every_law_over_every_transport(
    id: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """`make laws` does the same, with more examples."""
    code, said, err = checked(capsys, id, "--over", "all", "--examples", "10")
    if code == 2:
        pytest.skip(err)
    assert [law for one in said["checks"] for law in one["laws"] if law["failure"]] == []
    assert code == 0
    assert {one["verdict"] for one in said["checks"]} == {"passed"}
