"""Live sessions in Java: as the package's own, and as if each were alone."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from random import Random

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from rollwave.engine.child import ChildSpec
from rollwave.engine.errors import ConfigError, EnvironmentLost
from rollwave.engine.system import ActorSystem
from rollwave.envs.base import Task
from rollwave.envs.registry import resolve
from rollwave.envs.sciworld import machinery as subject
from rollwave.envs.sciworld import simulator
from rollwave.envs.sciworld.gateway import Call, Long, New
from rollwave.envs.sciworld.machinery import Live, Machinery, skipped
from rollwave.envs.sciworld.pool import Simulators
from rollwave.envs.sciworld.simulator import Moved
from rollwave.envs.worker.host import Owner, WorkerHost
from rollwave.envs.worker.limits import WorkerLimits

pytestmark = [
    pytest.mark.skipif(find_spec("scienceworld") is None, reason="scienceworld is not installed"),
    pytest.mark.skipif(shutil.which("java") is None, reason="there is no java on the PATH"),
]

RANDOM = ("mendelian-genetics-unknown-plant", 240)
"""Bees that fly about and plants that are mated: most of what is drawn in a session."""
WALK = (
    *("look around", "help", "objects", "task", " TASK \t", "inventory", "go to greenhouse"),
    *("open door to greenhouse", "go to greenhouse", "look around", "open bee hive", "wait"),
    *(
        "look around",
        "wait1",
        "wait1",
        "look at bee hive",
        "examine flower pot",
        "0",
        "pick up jug",
    ),
    *("move jug to sink", "activate sink", "wait", "look around", "connect a to b", "use x on y"),
    *("", "  ", "\n", "look\naround", "\\", "\0", "\ud800", "Ü" * 300, "focus on jug", "inventory"),
)


@pytest.fixture(scope="module")
def pool() -> Iterator[Simulators]:
    made = Simulators(heap_mib=512, live=2)
    yield made
    made.close()


@pytest.fixture(scope="module")
def machinery(pool: Simulators) -> Machinery:
    return pool.machinery()


def by_the_package(machinery: Machinery, task: str, variation: int, easy: str) -> list[Moved]:
    """As `PythonInterface` answers it. Nobody else has a turn meanwhile."""
    gateway = machinery.gateway
    machinery._simplified = None
    interface = gateway.calls(*machinery.aside(), New(subject._PYTHON))[-1]
    gateway.call(interface, "load", task, variation, easy, False)
    found = []
    for action in WALK:
        said, score, done, moves = gateway.calls(
            Call(interface, "step", action),
            Call(interface, "getScore"),
            Call(interface, "getCompleted"),
            Call(interface, "getNumMoves"),
        )
        found.append(Moved(said, round(100 * score), done, moves))
    gateway.drop(interface)
    return found


def alone(machinery: Machinery, live: Live) -> list[Moved]:
    found = [simulator.step(machinery, live, action) for action in WALK]
    machinery.forget(live)
    return found


@pytest.mark.parametrize(
    ("task", "variation", "easy"),
    [
        (*RANDOM, "easy"),
        ("grow-fruit", 0, ""),
        ("identify-life-stages-2", 5, "easy"),
        ("power-component", 10, "openDoors,teleportAction"),
    ],
)
def test_each_answer_is_the_packages_own(
    machinery: Machinery, task: str, variation: int, easy: str
) -> None:
    ours = alone(machinery, machinery.load(task, variation, easy))
    assert ours == by_the_package(machinery, task, variation, easy)


def test_what_is_not_made_is_not_missed(machinery: Machinery, pool: Simulators) -> None:
    """A task of each family, with that alone and with all of them made, as the package does."""
    assert machinery._table is not None
    assert sum(machinery.variations.values()) == 7207
    table = machinery._table
    members = {machinery._class(task): task for task in machinery.variations}
    assert members.keys() == table.families.keys()
    for task in members.values():
        count = machinery.variations[task]
        seen = []
        for used in (table, None):
            machinery._table = used  # type: ignore[misc]
            try:
                live = machinery.load(task, count - 1, "easy")
            finally:
                machinery._table = table  # type: ignore[misc]
            first = simulator.step(machinery, live, "look around")
            (state,) = machinery.gateway.calls(Call(live.random, "nextLong"))
            seen.append((live.description, live.ids, first, state))
            machinery.forget(live)
        assert seen[0] == seen[1], task


@given(seed=st.integers(0, 10_000), draws=st.integers(0, 3600))
@settings(max_examples=30, deadline=None)
def test_draws_are_skipped_as_java_draws(machinery: Machinery, seed: int, draws: int) -> None:
    from itertools import repeat

    gateway = machinery.gateway
    drawn, jumped = gateway.calls(
        New("java.util.Random", Long(seed)), New("java.util.Random", Long(skipped(seed, draws)))
    )
    gateway.calls(*repeat(Call(drawn, "nextFloat"), draws))
    one, other = gateway.calls(Call(drawn, "nextLong"), Call(jumped, "nextLong"))
    gateway.drop(drawn, jumped)
    assert one == other


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_no_seed_draws_otherwise(machinery: Machinery) -> None:
    """A draw below a bound is repeated once in some hundred millions."""
    gateway = machinery.gateway
    total = sum(drawn for _, _, drawn in subject._FAMILIES)
    for seed in range(max(machinery.variations.values())):
        *_, maker, ids, drawn = gateway.calls(
            *machinery.aside(),
            Call(machinery._scratch, "setSeed", Long(seed)),
            Call(subject._IDS, "reset"),
            New("scienceworld.tasks.TaskMaker1"),
            machinery.count,
            Call(machinery._scratch, "nextLong"),
        )
        gateway.drop(maker)
        (expected,) = gateway.calls(New("java.util.Random", Long(skipped(seed, total))))
        assert drawn == gateway.call(expected, "nextLong"), seed
        assert ids == sum(numbered for _, numbered, _ in subject._FAMILIES)


@given(seed=st.integers(0, 2**32))
@settings(max_examples=2, deadline=None)
def test_sessions_that_take_turns_and_are_made_again_are_as_if_alone(
    machinery: Machinery, pool: Simulators, seed: int
) -> None:
    """Three tasks that draw, of which two are held, in any order, and asked in between."""
    random = Random(seed)
    tasks = [(*RANDOM, "easy"), ("grow-fruit", 3, "easy"), ("find-animal", 7, "openDoors")]
    plans = [[random.choice(WALK[6:23]) for _ in range(7)] for _ in tasks]
    expected = []
    for task, plan in zip(tasks, plans, strict=True):
        live = machinery.load(*task)
        expected.append([simulator.step(machinery, live, action) for action in plan])
        machinery.forget(live)
    sessions = [pool.open() for _ in tasks]
    for session, task in zip(sessions, tasks, strict=True):
        session.load(*task)
    found: list[list[Moved]] = [[] for _ in tasks]
    rebuilt = pool.rebuilt
    turns = [number for number in range(len(tasks)) for _ in range(7)]
    random.shuffle(turns)
    for number in turns:
        session = sessions[number]
        question = random.randrange(9)
        if question == 0:
            assert session.look() == session.look()
        elif question == 1:
            assert session.inventory().startswith("In your inventory")
        elif question == 2:
            assert session.valid_actions() == session.valid_actions()
        found[number].append(session.step(plans[number][len(found[number])]))
    for session in sessions:
        session.close()
    assert found == expected
    assert pool.rebuilt > rebuilt


def test_a_solution_solves(
    pool: Simulators, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    session = pool.open()
    session.load("lifespan-longest-lived", 3, "easy")
    before = session.step("look around")
    path = session.gold_path()
    assert session.step("look around").observation == before.observation
    moved = [session.step(action) for action in path]
    assert (moved[-1].score, moved[-1].done) == (100, True)
    assert session.gold_path() == path
    session.close()


@pytest.mark.parametrize(
    ("task", "variation", "easy", "text"),
    [
        ("boiling", 0, "easy", "no task 'boiling'; it has boil, "),
        ("boil", 30, "easy", "variations 0 to 29, not 30"),
        ("boil", -1, "easy", "not -1"),
        ("boil", 0, "hard", "'hard'"),
    ],
)
def test_what_is_not_there_is_said(
    pool: Simulators, task: str, variation: int, easy: str, text: str
) -> None:
    session = pool.open()
    with pytest.raises(ConfigError, match=text):
        session.load(task, variation, easy)
    session.load("boil", 0)
    assert "boil" in session.task_description()
    session.close()


def test_a_killed_java_loses_one_call_and_no_session(pool: Simulators) -> None:
    one, other = pool.open(), pool.open()
    for session in (one, other):
        session.load("boil", 0)
        session.step("open door to kitchen")
    before = [one.look(), other.look()]
    assert pool.pid is not None
    os.kill(pool.pid, signal.SIGKILL)
    with pytest.raises(EnvironmentLost, match="code -9"):
        one.step("wait")
    assert [one.look(), other.look()] == before
    one.close()
    other.close()


def children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for file in found for child in file.read_text().split()]


async def test_in_a_worker_the_episode_goes_on() -> None:
    spec = resolve("sciworld-v1?actions=few")
    with trio.fail_after(120):
        async with ActorSystem(shutdown_seconds=20) as system:
            owner = Owner()
            await system.start(ChildSpec("workers", owner.actor, stop_timeout=15))
            host = WorkerHost(owner, spec, WorkerLimits(workers=1, memory_mib=1024))
            session, twin = await host.open(), await host.open()
            for hosted in (session, twin):
                await hosted.reset(Task(spec.id, 0), 0)
            await session.step("look around")
            await twin.step("look around")
            expected = await twin.step("inventory")
            (worker,) = host.workers
            (java,) = children(worker.pid)
            os.kill(java, signal.SIGKILL)
            assert await session.step("inventory") == expected
            assert (await twin.step("inventory")).observation == expected.observation
            (another,) = children(worker.pid)
            assert another != java
            await session.close()
            await twin.close()
    assert not Path(f"/proc/{another}").exists()


FORKS = """
import os
from rollwave.envs.sciworld.pool import Simulators

pool = Simulators(heap_mib=256)
session = pool.open()
session.load("boil", 0, "")
first = session.step("wait1").moves
child = os.fork()
assert session.step("wait1").moves == 2 * first
if child:
    assert os.waitpid(child, 0)[1] == 0
    assert session.step("wait1").moves == 3 * first
    assert pool.rebuilt == 0
else:
    assert pool.rebuilt == 1
pool.close()
"""


def test_a_forked_child_makes_its_sessions_again() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORKS], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
