"""Publishing policies: what is current while they are on their way, and what stays on disk."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from rollwave.actors.backends.base import Backend, Done
from rollwave.actors.inference import Inference, PolicyHolder
from rollwave.actors.protocol import Generate, WeightsSwapped
from rollwave.actors.weights import PolicyDirectories, publish
from rollwave.engine.errors import (
    ActorDead,
    BackendDied,
    ConfigError,
    StorageFailed,
    WeightSwapFailed,
)
from rollwave.engine.system import ActorSystem, ChildSpec


class Swapper(Backend):
    """Swaps by script: each incarnation does the next thing."""

    def __init__(self, script: list[str], version: int) -> None:
        super().__init__()
        self.policy_version = version
        self._script = script
        self._death = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        await self._death.wait()
        raise BackendDied("died in the swap")

    def submit(self, request: Generate, done: Done) -> None:
        raise NotImplementedError

    def cancel(self, request_id: str) -> None:
        raise NotImplementedError

    async def swap_weights(self, version: int, path: str) -> None:
        match self._script.pop(0) if self._script else "load":
            case "die":
                self._death.set()
                await trio.sleep_forever()
            case "refuse":
                raise WeightSwapFailed(f"{path} holds another model")
            case "hang":
                await trio.sleep_forever()
        await trio.sleep(1)


async def outcome(script: Sequence[str], holder: PolicyHolder, **options: float) -> WeightsSwapped:
    steps = list(script)
    async with ActorSystem() as system:
        inference = await system.start(
            ChildSpec("inference", lambda: Inference(lambda v, _: Swapper(steps, v), holder))
        )
        return await publish(inference, holder, 3, "models/policy-0003", **options)


async def test_a_policy_is_current_once_inference_has_confirmed_it(autojump_clock):
    holder = PolicyHolder(2, "models/policy-0002")
    assert await outcome([], holder) == WeightsSwapped(3, 1.0)
    assert (holder.version, holder.path) == (3, "models/policy-0003")


async def test_inference_that_dies_in_the_swap_is_asked_again(autojump_clock):
    holder = PolicyHolder(2, "models/policy-0002")
    assert (await outcome(["die", "die"], holder)).version == 3
    assert holder.version == 3


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (["refuse"], "another model"),
        (["die", "die", "die"], "died in each of 3 swaps"),
        (["hang"], "not confirmed within 60 s; version 2 is current"),
    ],
)
async def test_a_policy_that_cannot_be_served_leaves_the_one_before(autojump_clock, script, reason):
    holder = PolicyHolder(2, "models/policy-0002")
    with pytest.raises(WeightSwapFailed, match=reason):
        await outcome(script, holder, seconds=60)
    assert (holder.version, holder.path) == (2, "models/policy-0002")


async def test_after_a_failed_publish_the_next_one_works(autojump_clock):
    holder, script = PolicyHolder(0, "base"), ["refuse", "hang"]
    async with ActorSystem() as system:
        inference = await system.start(
            ChildSpec("inference", lambda: Inference(lambda v, _: Swapper(script, v), holder))
        )
        for version in (1, 2):
            with pytest.raises(WeightSwapFailed):
                await publish(inference, holder, version, f"p{version}", seconds=10)
        await publish(inference, holder, 3, "p3", seconds=10)
        assert (holder.version, holder.path) == (3, "p3")
        assert inference.statistics().restarts == 2


async def test_without_inference_there_is_nobody_to_publish_to(autojump_clock):
    holder = PolicyHolder(0, "base")
    async with ActorSystem() as system:
        inference = await system.start(
            ChildSpec("inference", lambda: Inference(lambda v, _: Swapper([], v), holder))
        )
        inference.stop()
        with pytest.raises(ActorDead):
            await publish(inference, holder, 1, "p1")
    assert holder.version == 0


def save(directories: PolicyDirectories, version: int) -> Path:
    folder = directories.path(version)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return folder


def test_directories_are_named_by_version(tmp_path):
    directories = PolicyDirectories(tmp_path / "models")
    assert directories.versions() == []
    assert directories.newest() is None
    assert directories.path(3) == tmp_path / "models" / "policy-0003"
    for version in (0, 11, 3):
        save(directories, version)
    (directories.path(12)).mkdir()  # a save that never ended
    (tmp_path / "models" / "policy-last").mkdir()
    assert directories.versions() == [0, 3, 11]
    assert directories.newest() == (11, tmp_path / "models" / "policy-0011")
    with pytest.raises(ConfigError, match="count from 0"):
        directories.path(-1)


@given(
    versions=st.sets(st.integers(0, 20_000), max_size=8),
    keep=st.integers(1, 4),
    protect=st.sets(st.integers(0, 20_000), max_size=2),
    protected_index=st.integers(0, 7),
)
@settings(max_examples=40, deadline=None)
def test_pruning_keeps_the_newest_and_the_protected(versions, keep, protect, protected_index):
    ordered = sorted(versions)
    if ordered:
        protect = protect | {ordered[protected_index % len(ordered)]}
    with tempfile.TemporaryDirectory() as root:
        directories = PolicyDirectories(root)
        for version in versions:
            save(directories, version)
        gone = directories.prune(keep, protect=protect)
        left = directories.versions()
        assert sorted(left + gone) == ordered
        assert left == sorted(set(ordered[-keep:]) | (protect & versions))
        assert {p.name for p in Path(root).iterdir()} == {directories.path(v).name for v in left}
        assert directories.prune(keep, protect=protect) == []


def test_pruning_refuses_to_keep_nothing(tmp_path):
    with pytest.raises(ConfigError, match="at least 1"):
        PolicyDirectories(tmp_path).prune(0)


def test_a_directory_that_cannot_be_deleted_is_named(tmp_path, monkeypatch):
    directories = PolicyDirectories(tmp_path)
    for version in (1, 2):
        save(directories, version)

    def refuse(self: Path, target: Path) -> Path:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(StorageFailed, match="policy-0001"):
        directories.prune(1)
    assert directories.versions() == [1, 2]
