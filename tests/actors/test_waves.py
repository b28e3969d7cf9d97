"""Waves: killed anywhere, the same command ends with the same file."""

from __future__ import annotations

import dataclasses
import errno
import functools
import shutil
from pathlib import Path
from typing import Any

import pytest
import trio
from rollwave.actors.backends.latency import ConstantLatency
from rollwave.actors.backends.scripted import ScriptedBackend
from rollwave.actors.embedding import open_engine
from rollwave.actors.monitor import Snapshot
from rollwave.actors.policy_source import PolicySource
from rollwave.actors.protocol import Generate
from rollwave.actors.turnlog import read_progress
from rollwave.actors.waves import WavePlan, play_wave, require_settings
from rollwave.engine.disk import Disk
from rollwave.engine.errors import ConfigError, RestartLimitExceeded, StorageFailed, StoreError
from rollwave.engine.incarnation import sole
from rollwave.engine.journal import Journal
from rollwave.engine.ref import ActorRef
from rollwave.engine.store import Store
from rollwave.engine.testing import crash, run_simulated
from rollwave.engine.trajectory import Outcome, Trajectory, Wave
from rollwave.envs.base import StepResult
from rollwave.envs.registry import resolve
from rollwave.envs.wrappers import Flaky, Trouble, Wrapper, wrap

MAZE = resolve("maze-grid-v1?style=terse")
PLAN = WavePlan(number=3, tasks=MAZE.tasks("train", limit=12), attempts=2, policy_version=2)


def wander(request: Generate) -> str:
    return ("up", "down", "left", "right")[request.seed % 4]


SCRIPTED = PolicySource(
    kind="model",
    name="scripted",
    make_backend=lambda _v, _p: ScriptedBackend(answer=wander, takes_tokens=False),
)


def play(
    out: Path,
    plan: WavePlan = PLAN,
    *,
    concurrency: int = 4,
    seed: int = 0,
    disk: Disk | None = None,
    **options: Any,
) -> Wave:
    async def main() -> Wave:
        with Store.open(out, disk=disk) as store:
            async with open_engine(SCRIPTED, concurrency=concurrency, seed=11) as engine:
                return await play_wave(engine, store, plan, **options)

    return run_simulated(main, seed=seed)


def sealed(out: Path) -> bytes:
    return (out / "waves" / "wave-0003.parquet").read_bytes()


def test_a_wave_is_sealed_in_manifest_order_whatever_order_it_was_played_in(
    tmp_path: Path,
) -> None:
    wave = play(tmp_path / "one", concurrency=1)
    assert [t.id for t in wave.trajectories] == PLAN.manifest()
    assert (wave.number, wave.policy_version) == (3, 2)
    for seed, concurrency in ((0, 4), (1, 24)):
        out = tmp_path / f"at-{concurrency}"
        assert play(out, concurrency=concurrency, seed=seed) == wave
        assert sealed(out) == sealed(tmp_path / "one")
        assert not (out / "journal.msgpack").exists()


def test_a_sealed_wave_is_read_and_not_played_again(tmp_path: Path) -> None:
    wave = play(tmp_path)
    watched: list[Snapshot] = []
    assert play(tmp_path, watch=watched.append) == wave
    assert watched == []


def test_everyone_who_watches_sees_it_grow(tmp_path: Path) -> None:
    watched: list[Snapshot] = []
    play(tmp_path, watch=watched.append, stage="wave 3")
    assert len(watched) == 24
    assert watched[-1].episodes_done == watched[-1].episodes_total == 24
    assert {snapshot.stage for snapshot in watched} == {"wave 3"}


@pytest.mark.parametrize("records", [0, 7, 24])
@pytest.mark.parametrize("torn", [0, 5])
def test_a_killed_wave_goes_on_from_its_journal_and_seals_the_same_file(
    tmp_path: Path, records: int, torn: int
) -> None:
    whole = tmp_path / "whole"
    play(whole)
    # What a kill leaves behind: the run as it was, and the journal up to some byte.
    killed = tmp_path / "killed"
    shutil.copytree(whole, killed)
    (killed / "waves" / "wave-0003.parquet").unlink()

    async def journal_part() -> None:
        with Store.open(whole) as store:
            wave = store.read(3)
        async with await Journal.open(killed / "journal.msgpack", threaded=False) as journal:
            for trajectory in sorted(wave.trajectories, key=lambda t: t.seed)[:records]:
                journal.append(trajectory)

    trio.run(journal_part)
    if torn and records:
        with (killed / "journal.msgpack").open("r+b") as file:
            file.truncate((killed / "journal.msgpack").stat().st_size - torn)
    watched: list[Snapshot] = []
    play(killed, watch=watched.append)
    kept = records - (1 if torn and records else 0)
    assert len(watched) == 24 - kept  # only what was missing was played
    assert sealed(killed) == sealed(whole)


def test_a_crash_between_sealing_and_tidying_up_harms_nobody(tmp_path: Path) -> None:
    async def leave_journal() -> None:
        with Store.open(tmp_path) as store:
            wave = store.read(3)
        async with await Journal.open(tmp_path / "journal.msgpack", threaded=False) as journal:
            for trajectory in wave.trajectories:
                journal.append(trajectory)

    play(tmp_path)
    trio.run(leave_journal)
    following = WavePlan(number=4, tasks=PLAN.tasks, attempts=1)
    wave = play(tmp_path, following)
    assert [t.id for t in wave.trajectories] == following.manifest()


def test_cancelled_episodes_are_played_again_and_faults_are_not(tmp_path: Path) -> None:
    broken = wrap(MAZE, lambda env: Flaky(env, {1: Trouble.RAISE}))

    async def first() -> list[Trajectory]:
        with Store.open(tmp_path) as store:
            async with (
                open_engine("expert", concurrency=4) as engine,
                await Journal.open(store.journal_path, threaded=False) as journal,
            ):
                engine.use(broken)
                rollout = engine.rollout(PLAN.tasks, attempts=2, wave=3, journal=journal)
                await anext(rollout)
                await engine.cancel(1)
                return [t async for t in rollout]

    async def then() -> Wave:
        with Store.open(tmp_path) as store:
            assert all(
                t.outcome is Outcome.FAULT for t in read_progress(store.journal_path)[0].values()
            )
            async with open_engine("expert", concurrency=4) as engine:
                return await play_wave(engine, store, PLAN)

    run_simulated(first)
    outcomes = [t.outcome for t in run_simulated(then).trajectories]
    assert set(outcomes) == {Outcome.FAULT, Outcome.SUCCESS}


def test_a_wave_whose_episodes_were_cancelled_is_not_sealed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A thread takes real time, in which all episodes might end: the journal writes inline.
    inline = functools.partial(Journal.open, threaded=False)
    monkeypatch.setattr("rollwave.actors.waves.Journal.open", inline)
    slow = dataclasses.replace(
        SCRIPTED,
        make_backend=lambda _v, _p: ScriptedBackend(
            ConstantLatency(1.0), answer=wander, takes_tokens=False
        ),
    )

    async def main() -> None:
        with Store.open(tmp_path) as store:
            async with open_engine(slow, concurrency=2) as engine:
                calls = 0

                def watch(_: Snapshot) -> None:
                    nonlocal calls
                    calls += 1
                    if calls == 3:
                        nursery.start_soon(engine.cancel, 1)

                async with trio.open_nursery() as nursery:
                    with pytest.raises(StoreError, match="run the same command again"):
                        await play_wave(engine, store, PLAN, watch=watch)
            assert store.waves() == []
            assert len(read_progress(store.journal_path)[0]) >= 3

    run_simulated(main)
    assert [t.id for t in play(tmp_path).trajectories] == PLAN.manifest()


def test_a_full_disk_ends_the_wave_with_one_error_and_the_next_run_goes_on(
    tmp_path: Path,
) -> None:
    class Full(Disk):
        def write(self, descriptor: int, data: bytes | memoryview, offset: int) -> None:
            if offset > 8_000:
                raise OSError(errno.ENOSPC, "No space left on device")
            super().write(descriptor, data, offset)

    whole = tmp_path / "whole"
    play(whole)
    run = tmp_path / "run"
    with pytest.raises(StorageFailed, match="free some space"):
        play(run, disk=Full())
    with Store.open(run) as store:
        assert store.waves() == []
        finished = len(read_progress(store.journal_path)[0])
        assert 0 < finished < 24
    watched: list[Snapshot] = []
    play(run, watch=watched.append)
    assert len(watched) == 24 - finished
    assert sealed(run) == sealed(whole)


def test_other_settings_are_refused_and_both_named(tmp_path: Path) -> None:
    with Store.open(tmp_path, settings={"seed": "1", "env": "x"}) as store:
        require_settings(store, {"seed": "1"})
        with pytest.raises(ConfigError, match="seed = '1', not '2'"):
            require_settings(store, {"env": "x", "seed": "2"})
        with pytest.raises(ConfigError, match="attempts = None, not '4'"):
            require_settings(store, {"attempts": "4"})


def test_a_fault_counts_as_a_result_of_the_wave(tmp_path: Path) -> None:
    class Broken(Wrapper):
        def step(self, action: str) -> StepResult:
            raise KeyError("gone")

    async def main() -> Wave:
        with Store.open(tmp_path) as store:
            async with open_engine("expert") as engine:
                engine.use(wrap(MAZE, Broken))
                return await play_wave(engine, store, PLAN)

    wave = run_simulated(main)
    assert {t.outcome for t in wave.trajectories} == {Outcome.FAULT}
    assert len(wave.trajectories) == 24


def test_an_engine_that_gives_up_makes_no_fault_of_what_was_live(tmp_path: Path) -> None:
    slow = dataclasses.replace(
        SCRIPTED,
        make_backend=lambda _v, _p: ScriptedBackend(
            ConstantLatency(1.0), answer=wander, takes_tokens=False
        ),
    )

    async def main() -> None:
        with Store.open(tmp_path / "run") as store:
            async with trio.open_nursery() as nursery:

                async def kill(inference: ActorRef) -> None:
                    for _ in range(6):  # one more than its supervisor grants
                        await trio.sleep(2.1)
                        assert crash(inference)

                async with open_engine(slow, concurrency=4, seed=11) as engine:
                    assert engine.inference is not None
                    nursery.start_soon(kill, engine.inference)
                    await play_wave(engine, store, PLAN)

    with pytest.raises(ExceptionGroup) as error:
        run_simulated(main)
    assert isinstance(sole(error.value), RestartLimitExceeded)
    ended, begun = read_progress(tmp_path / "run" / "journal.msgpack")
    assert not any(record.outcome is Outcome.FAULT for record in ended.values())
    assert begun  # they go on where they were
    whole, again = play(tmp_path / "whole"), play(tmp_path / "run")
    assert [(t.id, t.outcome, t.reward) for t in again.trajectories] == [
        (t.id, t.outcome, t.reward) for t in whole.trajectories
    ]


def test_a_wave_is_begun_anew_as_long_as_episodes_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rollwave.actors.waves._ROUNDS", 1)
    slow = dataclasses.replace(
        SCRIPTED,
        make_backend=lambda _v, _p: ScriptedBackend(
            ConstantLatency(1.0), answer=wander, takes_tokens=False
        ),
    )

    async def main() -> Wave:
        with Store.open(tmp_path / "run") as store:
            async with open_engine(slow, concurrency=4, seed=11) as engine:
                ended = 0

                def watch(snapshot: Snapshot) -> None:
                    nonlocal ended
                    ended += 1
                    if ended % 7 == 0:
                        dispatcher = engine.actor("dispatcher")
                        assert dispatcher is not None
                        crash(dispatcher)

                return await play_wave(engine, store, PLAN, watch=watch)

    wave = run_simulated(main)
    whole = play(tmp_path / "whole")
    assert [(t.id, t.outcome, t.reward) for t in wave.trajectories] == [
        (t.id, t.outcome, t.reward) for t in whole.trajectories
    ]
