"""Processes that do an order together: one answer, one error, and none of them left."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from rollwave.actors import learner
from rollwave.actors import learner_processes as module
from rollwave.actors.campaign import CAST
from rollwave.actors.config import parse_config
from rollwave.actors.learner import LearnerActor, order_of
from rollwave.actors.learner_processes import train_together
from rollwave.actors.monitor import Snapshot
from rollwave.actors.protocol import PolicyUpdated, UpdatePolicy
from rollwave.engine.errors import AskFailed, ConfigError, LearnerError
from rollwave.engine.ref import ActorRef
from rollwave.engine.store import Store
from rollwave.engine.system import ActorSystem, ChildSpec
from rollwave.engine.trajectory import Outcome, Trajectory, Turn
from rollwave.envs.base import Task
from rollwave.learners.base import Report
from rollwave.learners.distributed import Order
from rollwave.learners.member import Failed, _carried_out
from rollwave.learners.settings import TrainingSettings

ORDER = Order(out="m", starts={}, clone=TrainingSettings())

MEMBER = """
import json, os, signal, sys, time
parent, rank, size, port, listener = map(int, sys.argv[1:])
order = json.loads(sys.stdin.read())
def say(**said):
    print(json.dumps(said), flush=True)
"""
"""What every stand-in for a process of the learner begins with."""

DONE = "say(type='done', metrics={'loss': 0.5, 'kl': None}, kept=7, dropped={'fault': 1})"


@pytest.fixture
def member(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a few lines of Python into the place of what processes do."""

    def use(lines: str) -> None:
        script = MEMBER + textwrap.dedent(lines)
        monkeypatch.setattr(module, "_COMMAND", (sys.executable, "-c", script))

    monkeypatch.setattr(module, "_GRACE", 0.5)
    return use


def together(count: int = 2, told: Any = None) -> Report:
    return trio.run(train_together, ORDER, count, told or (lambda *_: None))


def alive(pid: int) -> bool:
    """Whether a process runs, and is not only waiting to be reaped."""
    with suppress(OSError):
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state != "Z"
    return False


def test_the_first_tells_steps_and_the_report(member: Callable[[str], None]) -> None:
    member(
        f"""
        assert order["out"] == "m" and "clone" in order
        assert (rank, size) == (int(rank), 3) and os.getppid() == parent
        print("from a library", file=sys.stderr)
        if rank == 0:
            os.fstat(listener)
            say(type="stepped", step=1, steps=2, metrics={{"loss": 1.5, "kl": None}})
            {DONE}
        else:
            say(type="done", metrics={{}}, kept=0, dropped={{}})
        """
    )
    told: list[tuple[int, int, Mapping[str, float]]] = []
    report = together(3, lambda *step: told.append(step))
    assert (report.kept, report.dropped) == (7, {"fault": 1})
    assert (report.metrics["loss"], math.isnan(report.metrics["kl"])) == (0.5, True)
    assert [(step, steps, m["loss"], math.isnan(m["kl"])) for step, steps, m in told] == [
        (1, 2, 1.5, True)
    ]


@pytest.mark.parametrize("first", [0, 1])
def test_our_own_error_comes_before_what_torch_says_of_a_peer(
    member: Callable[[str], None], first: int
) -> None:
    member(
        f"""
        if rank == {first}:
            say(type="failed", kind="BadSample", text="sample 3 has no tokens", ours=True)
        else:
            say(type="failed", kind="internal", text="Connection closed by peer", ours=False)
        """
    )
    with pytest.raises(AskFailed) as caught:
        together()
    assert (caught.value.kind, caught.value.text) == ("BadSample", "sample 3 has no tokens")


def test_a_foreign_error_has_its_kind(member: Callable[[str], None]) -> None:
    member("say(type='failed', kind='storage', text='OSError: full', ours=False)")
    with pytest.raises(AskFailed) as caught:
        together()
    assert (caught.value.kind, caught.value.text) == ("storage", "OSError: full")


def test_a_death_without_a_word_is_told_with_the_last_words(
    member: Callable[[str], None],
) -> None:
    """And before what the other says of it; which then waits for ever, and is killed."""
    member(
        """
        if rank == 1:
            print("half of a tensor", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        say(type="failed", kind="internal", text="Connection closed by peer", ours=False)
        time.sleep(600)
        """
    )
    with pytest.raises(LearnerError) as caught:
        together()
    assert str(caught.value) == (
        "process 2 of 2 was killed by SIGKILL; it said last: half of a tensor"
    )


def test_one_that_only_ends_has_failed(member: Callable[[str], None]) -> None:
    member("sys.exit('no module named torch')")
    with pytest.raises(LearnerError, match=r"1 of 2 ended with exit code 1; .* no module named"):
        together()


def test_when_the_first_is_done_the_order_is(member: Callable[[str], None]) -> None:
    member(f"if rank == 0: {DONE}\nelse: sys.exit(3)")
    assert together().kept == 7


def test_none_is_left_when_the_order_is_given_up(
    member: Callable[[str], None], tmp_path: Path
) -> None:
    member(
        """
        say(type="stepped", step=os.getpid(), steps=0, metrics={})
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)
        """
    )
    pids: list[int] = []

    async def main() -> None:
        def told(pid: int, _steps: int, _metrics: Mapping[str, float]) -> None:
            pids.append(pid)
            if len(pids) == 2:
                scope.cancel()

        with trio.CancelScope() as scope:
            await train_together(ORDER, 2, told)
        assert scope.cancelled_caught

    trio.run(main)
    assert len(pids) == 2
    for pid in pids:
        with pytest.raises(ProcessLookupError):  # not even to be reaped
            os.kill(pid, 0)


def test_all_start_or_none(member: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    member("time.sleep(600)")
    started: list[Any] = []
    real = subprocess.Popen

    def refuse(*args: Any, **options: Any) -> Any:
        if started:
            raise OSError(11, "Resource temporarily unavailable")
        started.append(real(*args, **options))
        return started[0]

    monkeypatch.setattr(module.subprocess, "Popen", refuse)
    with pytest.raises(LearnerError, match=r"process 2 of 2 .* run.learner_processes"):
        together()
    assert started[0].returncode == -signal.SIGKILL


PARENT = """
import sys, trio
from rollwave.actors import learner_processes as module
from rollwave.engine.lifeline import die_with
from rollwave.learners.distributed import Order
from rollwave.learners.member import Failed, _carried_out
from rollwave.learners.settings import TrainingSettings

module._COMMAND = (sys.executable, "-c", sys.argv[1])
order = Order(out="m", starts={}, clone=TrainingSettings())
trio.run(module.train_together, order, 2, lambda pid, *_: print(pid, flush=True))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only its kernel ends them at once")
def test_they_end_with_the_process_that_started_them() -> None:
    script = MEMBER + textwrap.dedent(
        """
        from rollwave.engine.lifeline import die_with
        die_with(parent)
        say(type="stepped", step=os.getpid(), steps=0, metrics={})
        time.sleep(600)
        """
    )
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, script], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pids = [int(parent.stdout.readline()) for _ in range(2)]
        assert all(map(alive, pids))
        parent.send_signal(signal.SIGKILL)
        parent.wait(30)
        # Their output is the parent's pipes, which close when they are gone.
        for pid in pids:
            with suppress(OSError):
                trio.run(_gone, os.pidfd_open(pid))
    assert not any(map(alive, pids))


async def _gone(fd: int) -> None:
    with trio.fail_after(30):
        await trio.lowlevel.wait_readable(fd)
    os.close(fd)


# -- with torch -------------------------------------------------------------------------

STEPS = {"max_steps": 4, "batch": 4, "device": "cpu", "lr": 3e-3, "checkpoint_every": 2}
TOLERANCE = 1e-6
"""Of weights: two processes sum in another order than one."""


def expert(task: int) -> Trajectory:
    actions = ("up", "down", "up", "up")[: task % 4 + 1]
    turns = tuple(Turn(f"at {n}", word, word, 0.0) for n, word in enumerate(actions))
    return Trajectory(
        f"w0/x_{task}/0",
        "x-v1",
        f"x_{task}",
        "train",
        0,
        0,
        0,
        Outcome.SUCCESS,
        1.0,
        terminated=True,
        turns=turns,
        policy="expert",
    )


@pytest.fixture
def cloning(tmp_path: Path) -> Callable[..., UpdatePolicy]:
    """Orders to clone eight experts into a tiny model."""
    pytest.importorskip("transformers", reason="training needs torch and transformers")
    from rollwave.learners.model.tiny import make_tiny_model

    words = ["at", "0", "1", "2", "3", "up", "down"]
    make_tiny_model(tmp_path / "base", vocabulary=words, width=16, layers=2, heads=1, context=32)
    with Store.open(tmp_path / "run") as store:
        sealed = str(store.seal(0, 0, [expert(n) for n in range(8)]).path)

    def order(name: str, *, evaluation: tuple[Task, ...] = (), **settings: Any) -> UpdatePolicy:
        training = TrainingSettings(**(STEPS | settings))
        return UpdatePolicy(
            "clone",
            msgspec.json.encode(training),
            (sealed,),
            (),
            {"last": str(tmp_path / "base")},
            evaluation,
            str(tmp_path / name),
        )

    return order


def with_learners(scenario: Any, watch: Any, *processes: int) -> None:
    async def main() -> None:
        async with ActorSystem() as system:
            refs: list[ActorRef] = [
                await system.start(
                    ChildSpec(
                        f"learner-{n}",
                        lambda n=n: LearnerActor(1, watch, 300.0, processes=n),  # type: ignore[misc]
                    )
                )
                for n in processes
            ]
            await scenario(*refs)

    trio.run(main)


def farthest(one: Path, two: Path) -> float:
    from safetensors.torch import load_file

    a, b = (load_file(path / "model.safetensors") for path in (one, two))
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@pytest.mark.learn
def test_two_train_what_a_thread_trains_also_when_one_of_them_is_killed(
    cloning: Callable[..., UpdatePolicy], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The layers are sharded, and the checkpoint that is gone on from is whole."""
    members: list[int] = []
    real = module._start

    def start(started: list[module.Member], count: int) -> None:
        real(started, count)
        members[:] = [member._popen.pid for member in started]

    monkeypatch.setattr(module, "_start", start)
    told: list[Snapshot] = []

    def watch(snapshot: Snapshot) -> None:
        told.append(snapshot)
        if "train m: step 3" in snapshot.stage and "resumed" not in snapshot.stage:
            os.kill(members[1], signal.SIGKILL)

    async def scenario(alone: ActorRef, both: ActorRef) -> None:
        straight = await alone.ask(cloning("straight"), PolicyUpdated)
        with pytest.raises(AskFailed) as caught:
            await both.ask(cloning("m", shard=True), PolicyUpdated)
        assert caught.value.kind == "LearnerError"
        assert caught.value.text.startswith("process 2 of 2 was killed by SIGKILL")
        assert not any(map(alive, members))
        assert not (tmp_path / "m").exists()
        done = await both.ask(cloning("m", shard=True), PolicyUpdated)
        assert done.metrics["resumed"] == 2
        assert done.kept == straight.kept == 8
        assert done.metrics["loss"] == pytest.approx(straight.metrics["loss"], abs=1e-5)

    with_learners(scenario, watch, 1, 2)
    steps = [s.training.step for s in told if s.training is not None and s.training.name == "m"]
    assert steps[-3:] == [2, 3, 4]
    assert told[-1].stage.startswith("train m: step 4 of 4, loss ")
    assert farthest(tmp_path / "straight", tmp_path / "m") < TOLERANCE


@pytest.mark.learn
def test_what_a_process_says_of_an_error_is_its_name(cloning: Callable[..., UpdatePolicy]) -> None:
    order = order_of(cloning("m", evaluation=(Task("x-v1", 3, "dev"),)), 1)
    said = _carried_out(order, lambda *_: None)
    assert said == Failed("EvaluationLeak", getattr(said, "text", ""), ours=True)
    assert "x_3" in said.text
    broken = msgspec.structs.replace(order, evaluation=(), out="/proc/nowhere/m")
    said = _carried_out(broken, lambda *_: None)
    assert isinstance(said, Failed)
    assert said.ours
    assert said.kind == "StorageFailed"


def test_the_campaign_says_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, int]] = []

    async def instead(order: Order, count: int, told: Any) -> Report:
        await trio.lowlevel.checkpoint()
        asked.append((order.out, count))
        assert order.seconds == 60.0
        told(1, 2, {"loss": 0.25})
        return Report({"loss": 0.25}, 3)

    monkeypatch.setattr(learner, "train_together", instead)
    document = {
        "run": {"learner_processes": 3, "step_seconds": 60.0},
        "environment": {"id": "maze-v1"},
        "model": {"path": "models/base"},
    }
    stages: list[str] = []
    order = UpdatePolicy(
        "clone", msgspec.json.encode(TrainingSettings()), (), (), {"last": "b"}, (), "models/m"
    )

    async def main() -> None:
        async with ActorSystem() as system:
            actor = CAST.learner(parse_config(document), lambda s: stages.append(s.stage))
            ref = await system.start(ChildSpec("learner", lambda: actor))
            assert (await ref.ask(order, PolicyUpdated)).kept == 3
            wishing = msgspec.structs.replace(order, algorithm="wishing")
            with pytest.raises(AskFailed, match="ConfigError: no order is called 'wishing'"):
                await ref.ask(wishing, PolicyUpdated)

    trio.run(main)
    assert asked == [("models/m", 3)]
    assert stages == ["train m", "train m: step 1 of 2, loss 0.250"]
    with pytest.raises(ConfigError, match=r"run\.learner_processes must be above 0, not 0"):
        parse_config({**document, "run": {"learner_processes": 0}})
