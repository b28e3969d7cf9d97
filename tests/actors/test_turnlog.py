"""Episodes in flight: whatever a crash left of the journal, the run ends as if it had not been."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from rollwave.actors.backends.latency import UniformLatency
from rollwave.actors.backends.scripted import ScriptedBackend
from rollwave.actors.embedding import EngineSettings, open_engine
from rollwave.actors.monitor import Snapshot
from rollwave.actors.policy_source import PolicySource
from rollwave.actors.protocol import Generate, TurnTaken
from rollwave.actors.turnlog import TurnLog, read_progress
from rollwave.actors.waves import WavePlan, play_wave
from rollwave.engine.codec import MAX_MESSAGE_BYTES
from rollwave.engine.disk import Disk
from rollwave.engine.errors import DeadlineExceeded, StorageFailed, TooManyFaults
from rollwave.engine.journal import Journal, read_journal
from rollwave.engine.store import Store
from rollwave.engine.testing import run_simulated
from rollwave.engine.trajectory import ChatMessage, Outcome, Trajectory, Turn, Wave
from rollwave.envs.base import Environment, EnvSpec, StepResult, Task
from rollwave.envs.hosting import Hosted, InlineHost
from rollwave.envs.registry import resolve
from rollwave.envs.wrappers import Flaky, Trouble, Wrapper

MAZE = resolve("maze-grid-v1?style=terse")
PLAN = WavePlan(number=2, tasks=MAZE.tasks("train", limit=6), attempts=2)
CLOSER, USER, AGENT = 256, 257, 258


class Bytes:
    """A chat template of one token a byte."""

    def opening(self, messages: Sequence[ChatMessage]) -> list[int]:
        return [*(i for m in messages for i in (USER, *m.text.encode(), CLOSER)), AGENT]

    def following(self, observation: str, *, closed: bool) -> list[int]:
        return [*([] if closed else [CLOSER]), USER, *observation.encode(), CLOSER, AGENT]

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(i for i in ids if i < CLOSER).decode()


class Asked:
    """A scripted model that remembers what it was asked."""

    def __init__(self) -> None:
        self.requests: list[str] = []

    def __call__(self, request: Generate) -> str:
        self.requests.append(request.request_id)
        return ("up", "down", "left", "right", "  ")[request.seed % 5]

    def source(self, *, tokens: bool = True, seconds: float = 0.0) -> PolicySource:
        return PolicySource(
            kind="model",
            name="scripted",
            make_backend=lambda _v, _p: ScriptedBackend(
                UniformLatency(0.1 * seconds, seconds),
                answer=self,
                tokenise=lambda text: [*text.encode(), CLOSER],
                takes_tokens=tokens,
            ),
            renderer=Bytes() if tokens else None,
        )


class Unsealable(Disk):
    """A disk on which no wave can be sealed: the journal stays, as after a crash."""

    def replace(self, path: Path, data: bytes) -> None:
        if path.suffix == ".parquet":
            raise OSError(errno.EIO, "Input/output error")
        super().replace(path, data)


class Slow(InlineHost):
    """Every step takes a second."""

    async def open(self) -> Hosted:
        inner = await super().open()
        step = inner.step

        async def slowly(action: str) -> StepResult:
            await trio.sleep(1.0)
            return await step(action)

        inner.step = slowly  # type: ignore[method-assign]
        return inner


def play(
    out: Path,
    asked: Asked,
    *,
    spec: EnvSpec = MAZE,
    tokens: bool = True,
    disk: Disk | None = None,
    watch: Callable[[Snapshot], None] | None = None,
) -> Wave:
    async def main() -> Wave:
        with Store.open(out, disk=disk) as store:
            async with open_engine(asked.source(tokens=tokens), concurrency=3, seed=5) as engine:
                engine.use(spec)
                return await play_wave(engine, store, PLAN, watch=watch)

    return run_simulated(main)


@cache
def whole(*, tokens: bool) -> tuple[Wave, bytes, tuple[str, ...]]:
    """An undisturbed wave, its whole journal, and what the model was asked."""
    with TemporaryDirectory() as directory:
        asked = Asked()
        with pytest.raises(StorageFailed):
            play(Path(directory), asked, tokens=tokens, disk=Unsealable())
        journal = (Path(directory) / "journal.msgpack").read_bytes()
        return play(Path(directory), Asked(), tokens=tokens), journal, tuple(asked.requests)


def crashed(out: Path, journal: bytes) -> Path:
    """A run directory as a crash left it."""
    Store.open(out).close()
    (out / "journal.msgpack").write_bytes(journal)
    return out


@given(st.floats(0, 1), st.booleans())
@settings(max_examples=60, deadline=None)
def test_cut_anywhere_the_same_command_ends_with_the_same_wave(where: float, tokens: bool) -> None:
    wave, journal, requests = whole(tokens=tokens)
    cut = round(where * len(journal))
    with TemporaryDirectory() as directory:
        out = crashed(Path(directory) / "run", journal[:cut])
        ended, begun = read_progress(out / "journal.msgpack")
        asked = Asked()
        assert play(out, asked, tokens=tokens) == wave
    taken = {f"{id_}/{turn.number}" for id_, turns in begun.items() for turn in turns}
    known = {name for name in requests if name.rpartition("/")[0] in ended} | taken
    # Nothing that the journal held is asked again, and all the rest is.
    assert sorted(asked.requests) == sorted(set(requests) - known)


def test_a_resumed_episode_says_so_and_keeps_its_first_turns(tmp_path: Path) -> None:
    wave, journal, _ = whole(tokens=True)
    out = tmp_path / "run"
    Store.open(out).close()
    write(out, changed(crashed(tmp_path / "a", journal) / "journal.msgpack"))
    seen: list[Snapshot] = []
    again = play(out, Asked(), watch=seen.append)
    assert again == wave
    assert (seen[-1].resumed, seen[-1].restarted) == (12, 0)


def write(out: Path, records: Sequence[Trajectory | TurnTaken]) -> None:
    async def main() -> None:
        async with await Journal.open(out / "journal.msgpack") as journal:
            for record in records:
                journal.append(record)

    run_simulated(main)


def changed(journal: Path, **turn: object) -> list[TurnTaken]:
    """The first two turns of each episode, the second with something else in it."""
    records = [r for r in read_journal(journal, Trajectory, TurnTaken) if isinstance(r, TurnTaken)]
    return [
        msgspec.structs.replace(r, turn=msgspec.structs.replace(r.turn, **turn))
        if r.number == 1
        else r
        for r in records
        if r.number < 2
    ]


@pytest.mark.parametrize(
    ("turn", "why"),
    [
        ({"observation": "somewhere else"}, "turn 1 began with another observation"),
        ({"reward": 0.25}, "turn 1 earned 0.0, not 0.25"),
        ({"start": 3}, "turn 1 of .* lacks its tokens"),
    ],
)
def test_what_cannot_be_rebuilt_begins_anew_and_says_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, turn: dict[str, object], why: str
) -> None:
    wave, journal, requests = whole(tokens=True)
    records = changed(crashed(tmp_path / "a", journal) / "journal.msgpack", **turn)
    out = tmp_path / "run"
    Store.open(out).close()
    write(out, records)
    asked, seen = Asked(), list[Snapshot]()
    assert play(out, asked, watch=seen.append) == wave
    assert (seen[-1].resumed, seen[-1].restarted) == (0, 12)
    assert sorted(asked.requests) == sorted(requests)
    assert len([m for m in caplog.messages if "began anew" in m]) == 1  # they are counted
    assert re.search(why, caplog.text)


@pytest.mark.parametrize("seconds", [0.5, 1.5, 2.5])
def test_who_is_stopped_in_the_middle_of_a_replay_is_no_fault(
    tmp_path: Path, seconds: float
) -> None:
    wave, journal, _ = whole(tokens=True)
    begun: dict[str, tuple[TurnTaken, ...]] = {}
    for turn in changed(crashed(tmp_path / "a", journal) / "journal.msgpack"):
        begun[turn.episode] = (*begun.get(turn.episode, ()), turn)

    async def main() -> list[Trajectory]:
        async with open_engine(Asked().source(), concurrency=12, seed=5) as engine:
            engine.use(MAZE, Slow(MAZE.make))
            rollout = engine.rollout(PLAN.tasks, attempts=2, wave=PLAN.number, resume=begun)

            async def stop() -> None:
                await trio.sleep(seconds)
                await engine.cancel(1)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(stop)
                return [record async for record in rollout]

    records = run_simulated(main)
    assert {record.outcome for record in records} == {Outcome.CANCELLED}
    assert len(records) == len(wave.trajectories)
    # Two turns are rebuilt, in one step; those without a step in the world take no time.
    lengths = {len(record.turns) for record in records}
    assert 1 not in lengths
    assert (0 in lengths) == (seconds < 2)


def test_turns_of_another_seed_and_kept_as_text_are_not_taken_over(tmp_path: Path) -> None:
    wave, _, requests = whole(tokens=True)
    _, text, _ = whole(tokens=False)
    for name, change in (("text", {}), ("seed", {"seed": 17})):
        records = changed(crashed(tmp_path / name, text) / "journal.msgpack")
        out = tmp_path / f"{name}-run"
        Store.open(out).close()
        write(out, [msgspec.structs.replace(r, **change) for r in records])
        asked = Asked()
        assert play(out, asked) == wave
        assert len(asked.requests) == len(requests)


def test_a_world_that_is_not_deterministic_begins_anew(tmp_path: Path) -> None:
    _, journal, requests = whole(tokens=True)
    out = tmp_path / "run"
    Store.open(out).close()
    write(out, changed(crashed(tmp_path / "a", journal) / "journal.msgpack"))
    asked, seen = Asked(), list[Snapshot]()
    play(out, asked, spec=replace(MAZE, deterministic=False), watch=seen.append)
    assert (seen[-1].resumed, seen[-1].restarted) == (0, 12)
    assert sorted(asked.requests) == sorted(requests)


def test_a_world_that_breaks_in_the_replay_costs_its_own_episode(tmp_path: Path) -> None:
    whole_wave, journal, _ = whole(tokens=True)

    class Shy(Wrapper):
        def step(self, action: str) -> StepResult:
            if self.observation().startswith("goal 3"):
                raise OSError(5, "the world's server is down")
            return super().step(action)

    out = tmp_path / "run"
    Store.open(out).close()
    write(out, changed(crashed(tmp_path / "a", journal) / "journal.msgpack"))
    wave = play(out, Asked(), spec=replace(MAZE, make=lambda: Shy(MAZE.make())))
    struck = [t for t in wave.trajectories if t.fault is not None]
    assert 0 < len(struck) < 12
    for t in struck:
        assert t.fault is not None
        assert "server is down" in t.fault.text
    unharmed = [t for t in wave.trajectories if t.fault is None]
    assert unharmed == [t for t in whole_wave.trajectories if t.id in {u.id for u in unharmed}]


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 1), st.integers(0, 2)), max_size=20))
@settings(deadline=None)
def test_progress_is_a_prefix_under_one_seed(entries: list[tuple[int, int, int]]) -> None:
    """Whatever order turns were logged in: from turn 0 on, without a hole, of one seed."""
    turn = Turn("o", "c", "a", 0.0)
    records = [TurnTaken(f"e{e}", n, s, turn, b"", b"") for n, s, e in entries]
    with TemporaryDirectory() as directory:
        Store.open(Path(directory) / "run").close()
        write(Path(directory) / "run", records)
        _, begun = read_progress(Path(directory) / "run" / "journal.msgpack")
    for id_, turns in begun.items():
        assert [taken.number for taken in turns] == list(range(len(turns)))
        assert len({taken.seed for taken in turns}) == 1
        assert all(taken.episode == id_ for taken in turns)
    assert set(begun) == {f"e{e}" for n, _, e in entries if n == 0}


def test_a_turn_that_cannot_be_logged_harms_nobody(tmp_path: Path) -> None:
    stirred: list[None] = []

    async def main() -> None:
        journal = await Journal.open(tmp_path / "journal")
        log = TurnLog(journal, lambda: stirred.append(None))
        small = TurnTaken("e", 0, 1, Turn("o", "c", "a", 0.0), b"", b"")
        log.record(small)
        log.record(msgspec.structs.replace(small, token_ids=bytes(MAX_MESSAGE_BYTES)))
        log.record(msgspec.structs.replace(small, turn=Turn("o", "\ud800", "a", 0.0)))
        await journal.close()
        log.record(small)

    run_simulated(main)
    assert len(stirred) == 1
    assert read_progress(tmp_path / "journal")[1] == {
        "e": (TurnTaken("e", 0, 1, Turn("o", "c", "a", 0.0), b"", b""),)
    }


def test_turns_reach_the_disk_although_no_episode_ends(tmp_path: Path) -> None:
    class Endless(Environment):
        def reset(self, task: Task, seed: int) -> str:
            return "on and on"

        def step(self, action: str) -> StepResult:
            return StepResult("on and on")

        def observation(self) -> str:
            return "on and on"

        def available_actions(self) -> Sequence[str]:
            return ("go",)

    spec = replace(MAZE, make=Endless, turn_limit=10**6)

    async def main() -> None:
        with Store.open(tmp_path) as store:
            async with open_engine(Asked().source(seconds=1.0), concurrency=3) as engine:
                engine.use(spec)
                with trio.move_on_after(20.0):
                    await play_wave(engine, store, PLAN)
                    raise AssertionError("it never ends")

    class Look(trio.abc.Instrument):
        """Counts the turns on the disk while it runs."""

        most = 0

        def before_io_wait(self, timeout: float) -> None:
            _, begun = read_progress(tmp_path / "journal.msgpack")
            self.most = max(self.most, sum(map(len, begun.values())))

    look = Look()

    async def watched() -> None:
        trio.lowlevel.add_instrument(look)
        await main()

    run_simulated(watched)
    assert look.most > 30


# -- a broken world, a late wave --------------------------------------------------------


def flaky(share: int) -> EnvSpec:
    """A world of which each n-th session breaks at its first action."""
    made = iter(range(10**9))

    def make() -> Environment:
        return Flaky(MAZE.make(), {1: Trouble.RAISE} if next(made) % share == 0 else {})

    return replace(MAZE, make=make)


def wave_of(out: Path, spec: EnvSpec, *, allowed: float) -> Wave:
    async def main() -> Wave:
        with Store.open(out) as store:
            async with open_engine(Asked().source(), concurrency=3, seed=5) as engine:
                engine.use(spec)
                return await play_wave(
                    engine, store, PLAN, stage="wave 2: explore", max_fault_share=allowed
                )

    return run_simulated(main)


def test_too_many_faults_stop_the_wave_early_and_unsealed(tmp_path: Path) -> None:
    with pytest.raises(TooManyFaults) as caught:
        wave_of(tmp_path, flaky(1), allowed=0.3)
    text = str(caught.value)
    assert text.startswith("wave 2: explore: 4 of 12 episodes are faults (4 environment), above")
    assert "injected fault: raise at step 1" in text
    assert "run the same command" in text
    assert not list((tmp_path / "waves").iterdir())
    ended, _ = read_progress(tmp_path / "journal.msgpack")
    assert len(ended) < 8  # it did not play the rest in a broken world
    # Mended, the same command plays what faulted again.
    wave = wave_of(tmp_path, MAZE, allowed=0.3)
    assert wave == whole(tokens=True)[0]


def test_as_many_faults_as_allowed_are_results(tmp_path: Path) -> None:
    wave = wave_of(tmp_path, flaky(4), allowed=0.25)
    assert [t.outcome for t in wave.trajectories].count(Outcome.FAULT) == 3
    with pytest.raises(TooManyFaults):
        wave_of(tmp_path / "again", flaky(4), allowed=0.24)


def test_a_late_wave_names_what_was_stuck_and_goes_on(tmp_path: Path) -> None:
    async def main(seconds: float) -> Wave:
        limits = EngineSettings(concurrency=3, seed=5, turn_seconds=1e6, episode_seconds=1e7)
        with Store.open(tmp_path) as store:
            async with open_engine(Asked().source(seconds=100.0), settings=limits) as engine:
                return await play_wave(engine, store, PLAN, stage="wave 2", seconds=seconds)

    with pytest.raises(DeadlineExceeded) as caught:
        run_simulated(main, 300.0)
    text = str(caught.value)
    assert text.startswith("wave 2 took longer than 300 s: ")
    assert "of 12 episodes had not ended; longest in one stage was turn " in text
    wave = run_simulated(main, 1e9)
    told = [[turn.completion for turn in t.turns] for t in wave.trajectories]
    plain = [[turn.completion for turn in t.turns] for t in whole(tokens=True)[0].trajectories]
    assert told == plain


def test_a_wave_that_was_sealed_with_more_faults_is_not_learned_from_in_silence(
    tmp_path: Path,
) -> None:
    wave = wave_of(tmp_path, flaky(2), allowed=0.5)
    assert wave_of(tmp_path, MAZE, allowed=0.5) == wave
    with pytest.raises(TooManyFaults, match=r"sealed with 6 faults among 12 .* start a new run"):
        wave_of(tmp_path, MAZE, allowed=0.4)
