"""A fault at each boundary of the house: one clear error each, and nothing lost.

Every scenario plays a wave of twelve episodes into a store. What a fault may cost is
written beside it; everything else must come out as in the wave that met no fault.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
import trio.testing
from rollwave.actors.backends.base import Done
from rollwave.actors.backends.latency import UniformLatency
from rollwave.actors.backends.scripted import ScriptedBackend
from rollwave.actors.embedding import open_engine
from rollwave.actors.policy_source import PolicySource
from rollwave.actors.protocol import Accepted, Generate, SwapWeights, WeightsSwapped
from rollwave.actors.waves import WavePlan, play_wave
from rollwave.cli.main import main as command
from rollwave.engine.codec import Message
from rollwave.engine.disk import Disk
from rollwave.engine.errors import (
    AskFailed,
    FaultKind,
    JournalCorrupt,
    MessageError,
    StorageFailed,
    WaveCorrupt,
)
from rollwave.engine.store import Store
from rollwave.engine.testing import run_simulated
from rollwave.engine.trajectory import Outcome, Trajectory, Wave
from rollwave.envs.base import Environment, EnvSpec
from rollwave.envs.registry import resolve
from rollwave.envs.wrappers import Flaky, Trouble

MAZE = resolve("maze-grid-v1?style=terse")
PLAN = WavePlan(number=1, tasks=MAZE.tasks("train", limit=12))
Make = Callable[[], ScriptedBackend]


def wander(request: Generate) -> str:
    return ("up", "down", "left", "right")[request.seed % 4]


def steady() -> ScriptedBackend:
    return ScriptedBackend(UniformLatency(0.1, 1.0), answer=wander, takes_tokens=False)


def source(make: Make = steady) -> PolicySource:
    return PolicySource(kind="model", name="scripted", make_backend=lambda _v, _p: make())


def play(
    out: Path,
    make: Make = steady,
    spec: EnvSpec = MAZE,
    disk: Disk | None = None,
    clock: trio.abc.Clock | None = None,
) -> Wave:
    async def main() -> Wave:
        with Store.open(out, disk=disk) as store:
            async with open_engine(source(make), concurrency=4) as engine:
                engine.use(spec)
                return await play_wave(engine, store, PLAN)

    return run_simulated(main) if clock is None else trio.run(main, clock=clock)


def told(t: Trajectory) -> Trajectory:
    """What happened in the episode, without when."""
    turns = tuple(
        msgspec.structs.replace(turn, generate_seconds=0.0, step_seconds=0.0) for turn in t.turns
    )
    return msgspec.structs.replace(t, turns=turns, started=0.0, seconds=0.0)


def others_are_unharmed(wave: Wave, plain: Wave, struck: set[str]) -> None:
    assert [t.id for t in wave.trajectories] == PLAN.manifest()
    for t, undisturbed in zip(wave.trajectories, plain.trajectories, strict=True):
        t.check()
        if t.id not in struck:
            assert told(t) == told(undisturbed)
        else:
            assert (t.outcome, t.reward) == (Outcome.FAULT, None)


def flaky(trouble: Trouble, every: int, **changes: Any) -> tuple[EnvSpec, list[Flaky]]:
    """A world of which each n-th session goes wrong at its second action."""
    made: list[Flaky] = []

    def make() -> Environment:
        at = {2: trouble} if len(made) % every == 0 else {}
        made.append(Flaky(MAZE.make(), at))
        return made[-1]

    return replace(MAZE, make=make, **changes), made


@pytest.mark.parametrize("trouble", [Trouble.RAISE, Trouble.GARBAGE])
def test_a_world_that_breaks_costs_its_own_episodes(tmp_path: Path, trouble: Trouble) -> None:
    plain = play(tmp_path / "plain")
    spec, made = flaky(trouble, every=5)
    wave = play(tmp_path / "broken", spec=spec)
    struck = {t.id for t in wave.trajectories if t.fault is not None}
    assert len(struck) == sum(bool(env.injected) for env in made) == 3
    others_are_unharmed(wave, plain, struck)
    for t in wave.trajectories:
        if t.fault is not None:
            assert (t.fault.kind, t.fault.turn, len(t.turns)) == (FaultKind.ENVIRONMENT, 1, 2)


def test_a_world_that_hangs_costs_its_own_episode_and_no_thread(tmp_path: Path) -> None:
    plain = play(tmp_path / "plain")
    spec, made = flaky(Trouble.HANG, every=100, cost="thread")
    # Threads take real time, in which the virtual clock must not run on by itself; the
    # deadline comes when nothing else has happened for a while. Hence no latency either.
    clock = trio.testing.MockClock(autojump_threshold=0.5)
    quick = partial(ScriptedBackend, answer=wander, takes_tokens=False)
    wave = play(tmp_path / "hung", quick, spec=spec, clock=clock)
    (t,) = [t for t in wave.trajectories if t.fault is not None]
    assert t.fault is not None
    assert t.fault.kind is FaultKind.DEADLINE
    assert t.fault.text == f"DeadlineExceeded: turn 1 of {t.id} took longer than 120 s"
    others_are_unharmed(wave, plain, {t.id})
    assert made[0]._released.wait(30)  # it was closed, which lets its thread go


def test_an_engine_that_dies_costs_nothing(tmp_path: Path) -> None:
    plain = play(tmp_path / "plain")
    deaths = [5, 23, 40]
    count = 0

    class Dying(ScriptedBackend):
        def submit(self, request: Generate, done: Done) -> None:
            nonlocal count
            count += 1
            super().submit(request, done)
            if count in deaths:
                self.die("its thread is gone")

    def dying() -> ScriptedBackend:
        return Dying(UniformLatency(0.1, 1.0), answer=wander, takes_tokens=False)

    wave = play(tmp_path / "dying", dying)
    others_are_unharmed(wave, plain, set())
    assert count > 40


def test_an_engine_that_refuses_or_forgets_costs_those_turns(tmp_path: Path) -> None:
    plain = play(tmp_path / "plain")

    class Picky(ScriptedBackend):
        def submit(self, request: Generate, done: Done) -> None:
            if request.request_id != "w1/maze-grid_3/0/0":  # else: never answered
                super().submit(request, done)

    def script(request: Generate) -> str:
        if request.request_id == "w1/maze-grid_7/0/1":
            raise ValueError("too long for me\nand a second line")
        return wander(request)

    wave = play(tmp_path / "picky", lambda: Picky(answer=script, takes_tokens=False))
    others_are_unharmed(wave, plain, {"w1/maze-grid_3/0", "w1/maze-grid_7/0"})
    faults = {t.id: t.fault for t in wave.trajectories if t.fault is not None}
    late, refused = faults["w1/maze-grid_3/0"], faults["w1/maze-grid_7/0"]
    assert (late.kind, late.turn) == (FaultKind.DEADLINE, 0)
    assert late.text == "DeadlineExceeded: turn 0 of w1/maze-grid_3/0 took longer than 120 s"
    assert (refused.kind, refused.turn) == (FaultKind.BACKEND, 1)
    assert "too long for me" in refused.text
    assert "\n" not in refused.text


def test_a_disk_that_fills_up_while_sealing_costs_nothing(tmp_path: Path) -> None:
    class Full(Disk):
        def write(self, descriptor: int, data: bytes | memoryview, offset: int) -> None:
            if len(data) > 2_000:
                raise OSError(errno.ENOSPC, "No space left on device")
            super().write(descriptor, data, offset)

    plain = play(tmp_path / "plain")
    run = tmp_path / "run"
    with pytest.raises(StorageFailed, match=r"wave-0001\.parquet: No space left.*free some space"):
        play(run, disk=Full())
    assert list((run / "waves").iterdir()) == []
    asked: list[str] = []

    def script(request: Generate) -> str:
        asked.append(request.request_id)
        return wander(request)

    assert play(run, lambda: ScriptedBackend(answer=script, takes_tokens=False)) == plain
    assert asked == []  # all of it was in the journal


def test_damage_is_named_with_its_file_and_nothing_is_overwritten(tmp_path: Path) -> None:
    play(tmp_path)
    path = tmp_path / "waves" / "wave-0001.parquet"
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 3] ^= 0xFF
    path.write_bytes(damaged)
    with pytest.raises(WaveCorrupt, match=r"wave-0001\.parquet"):
        play(tmp_path)
    assert path.read_bytes() == damaged


def test_a_journal_damaged_in_the_middle_is_named_and_kept(tmp_path: Path) -> None:
    class Full(Disk):
        def replace(self, path: Path, data: bytes) -> None:
            if path.suffix == ".parquet":
                raise OSError(errno.EROFS, "Read-only file system")
            super().replace(path, data)

    with pytest.raises(StorageFailed, match="Read-only"):
        play(tmp_path, disk=Full())
    journal = tmp_path / "journal.msgpack"
    damaged = bytearray(journal.read_bytes())
    damaged[200] ^= 0xFF
    journal.write_bytes(damaged)
    with pytest.raises(JournalCorrupt, match=r"journal\.msgpack"):
        play(tmp_path)
    assert journal.read_bytes() == damaged


class Stranger(Message, frozen=True):
    """A message that nobody in the cast receives."""

    text: str


def test_a_message_that_is_none_fails_its_sender_alone() -> None:
    async def main() -> None:
        async with open_engine(source()) as engine:
            assert engine.inference is not None
            for actor in (engine.inference, engine._dispatcher):
                with pytest.raises(MessageError, match="does not receive this"):
                    await actor.ask(Stranger("hello"), Accepted)
                assert actor.statistics().restarts == 0
            tasks = engine.tasks(MAZE.id, "train", limit=3)
            assert len([t async for t in engine.rollout(tasks)]) == 3

    run_simulated(main)


def test_weights_that_cannot_be_served_leave_the_old_ones_in_place() -> None:
    class Fixed(ScriptedBackend):
        async def swap_weights(self, version: int, path: str) -> None:
            await super(ScriptedBackend, self).swap_weights(version, path)

    async def main() -> None:
        async with open_engine(source(lambda: Fixed(takes_tokens=False))) as engine:
            assert engine.inference is not None
            with pytest.raises(AskFailed, match="cannot load models/9"):
                await engine.inference.ask(SwapWeights(9, "models/9"), WeightsSwapped)
            tasks = engine.tasks(MAZE.id, "train", limit=3)
            assert {t.versions async for t in engine.rollout(tasks)} == {(0, 0)}

    run_simulated(main)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[run\n", "is not TOML"),
        ("[environment]\nid = 'maze-grid-v1'\n[modle]\n", "unknown field `modle`"),
        ("[environment]\nid = 'maze-grid-v1'\nlimit = 3\n", "unknown field `limit`"),
        (
            "[environment]\nid = 'mase-grid-v1'\n[model]\npath = 'x'\n",
            "maze-grid-v1",  # the nearest name
        ),
    ],
)
def test_a_config_that_is_wrong_is_one_line_and_no_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, complaint: str
) -> None:
    (tmp_path / "campaign.toml").write_text(text)
    out = tmp_path / "out"
    code = command(["evolve", str(tmp_path / "campaign.toml"), "--out", str(out)])
    error = capsys.readouterr().err
    assert code != 0
    assert complaint in " ".join(error.split())
    assert "Traceback" not in error
    assert not out.exists()
