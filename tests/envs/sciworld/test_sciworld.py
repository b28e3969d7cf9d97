"""ScienceWorld itself, in Java: the package's tasks, AgentGym's texts, the laws, the published."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import trio
from rollwave.engine.child import ChildSpec
from rollwave.engine.system import ActorSystem
from rollwave.envs.agentgym import read_trajectories
from rollwave.envs.agentgym.server import Request, WireServer
from rollwave.envs.base import Environment, Task
from rollwave.envs.laws import broken, check
from rollwave.envs.laws.single import splits_are_disjoint
from rollwave.envs.registry import resolve
from rollwave.envs.replay import DifferenceKind, replay_file
from rollwave.envs.sciworld import PROMPT, simulators
from rollwave.envs.sciworld.tasks import KINDS, Ids, table
from rollwave.envs.transports import TRANSPORTS
from rollwave.envs.worker.host import Owner, WorkerHost

pytestmark = [
    pytest.mark.skipif(find_spec("scienceworld") is None, reason="scienceworld is not installed"),
    pytest.mark.skipif(shutil.which("java") is None, reason="there is no java on the PATH"),
]

DATA = Path(__file__).parents[4] / "shared" / "data" / "agenttraj" / "sciworld.json.gz"
EASY = "sciworld-v1?simplification=easy"


@pytest.fixture(autouse=True, scope="module")
def _java() -> Iterator[None]:
    yield
    simulators().close()
    simulators.cache_clear()


def published() -> Path:
    if not DATA.is_file():
        pytest.skip(f"the published trajectories are not at {DATA}")
    return DATA


def begun(name: str, variation: int, id: str = "sciworld-v1") -> tuple[Environment, str]:
    spec = resolve(id)
    env = spec.make()
    return env, env.reset(Task(spec.id, table(Ids.DATA).number(name, variation)), 0)


# --- fidelity -----------------------------------------------------------------------


def test_published_episodes_come_out_as_they_were_but_for_one_temperature() -> None:
    report = replay_file(published())
    assert (report.trajectories, report.observations, report.rewards) == (8, 178, 8)
    assert report.rewards_equal == 8
    assert report.observations_equal == 177
    assert report.observations_reworded == 24
    found = [(d.kind, d.item, d.turn) for d in report.differences]
    assert found == [(DifferenceKind.OBSERVATION, "sciworld_138", 20)]
    recorded, now = (
        d.removeprefix("the thermometer measures a temperature of ")
        for d in (report.differences[0].expected, report.differences[0].got)
    )
    assert (recorded, now) == ("-20 degrees celsius", "-18 degrees celsius")


def test_the_opening_is_the_published_one() -> None:
    episodes = read_trajectories(published())
    assert {episode.prompt for episode in episodes} == {PROMPT}
    assert {episode.number for episode in episodes} <= set(table(Ids.DATA).splits()["train"])


def test_an_episode_begins_as_on_agentgyms_server() -> None:
    _, said = begun("test-conductivity", 195)
    assert said == (
        "Your task is to determine if book (The Foundations of the Origin of Species) is "
        "electrically conductive. The book (The Foundations of the Origin of Species) is located "
        "around the kitchen. First, focus on the book (The Foundations of the Origin of Species). "
        "If it is electrically conductive, place it in the red box. If it is electrically "
        "nonconductive, place it in the green box.\n"
        "This room is called the greenhouse. In it, you see: \n\tthe agent\n\ta substance called "
        "air\n\ta bee hive. The bee hive door is closed. \n\ta jug (containing nothing)\n\ta sink, "
        "which is turned off. In the sink is: nothing.\nYou also see:\n\tA door to the hallway "
        "(that is closed)\n\tA door to the outside (that is closed)"
    )


PACKAGE = """
import json, sys
from scienceworld import ScienceWorldEnv
env = ScienceWorldEnv()
told = {}
for name in env.get_task_names():
    env.load(name, 0)
    parts = env.get_variations_train(), env.get_variations_dev(), env.get_variations_test()
    told[name] = [env.get_max_variations(name), *parts]
print(json.dumps(told))
"""


@pytest.mark.slow
def test_kinds_variations_and_splits_are_the_packages() -> None:
    # In a process of its own: what the package starts it does not end without noise.
    run = subprocess.run(
        [sys.executable, "-c", PACKAGE], capture_output=True, text=True, check=True
    )
    told = json.loads(run.stdout)
    assert told == {
        kind.name: [
            kind.variations,
            list(range(kind.train)),
            list(range(kind.train, kind.dev)),
            list(range(kind.dev, kind.variations)),
        ]
        for kind in KINDS
    }


# --- how it goes --------------------------------------------------------------------


def test_the_packages_solution_solves_and_is_advised_through_idle_talk() -> None:
    env, _ = begun("find-plant", 83)
    earned = 0.0
    for idle in ("inventory", "what shall I do?", "", "task", "look around"):
        answer = env.step(idle)
        earned += answer.reward
        if (advice := env.expert()) is not None:
            answer = env.step(advice)
            earned += answer.reward
    while not answer.done:
        answer = env.step(env.expert() or "")
        earned += answer.reward
    assert answer.success
    assert earned == pytest.approx(1)


def test_the_wrong_focus_costs_everything() -> None:
    env, _ = begun("find-plant", 83)
    answer = env.step("focus on axe")
    assert (answer.terminated, answer.success, answer.reward) == (True, False, -1)


def test_waiting_runs_out_of_moves() -> None:
    env, _ = begun("boil", 3)
    answers = [env.step("wait") for _ in range(10)]
    assert [answer.truncated for answer in answers] == [False] * 9 + [True]


def test_the_same_actions_read_the_same_temperature_whatever_the_process_did_before() -> None:
    """Heat flows in the order in which Java iterates sets, which must not be by chance."""
    episode = next(one for one in read_trajectories(published()) if one.number == 138)
    told = set()
    for _ in range(5):
        env, _ = begun("use-thermometer", 18, f"{EASY}&wording=published")
        for _, said in episode.turns[:20]:
            last = env.step(said.rpartition("Action:")[2].strip())
        told.add(last.observation)
        begun("boil", len(told))[0].step("wait1")
    assert len(told) == 1


def test_legal_actions_are_the_simulators() -> None:
    env, _ = begun("boil", 3)
    legal = env.available_actions()
    assert "open door to kitchen" in legal
    assert len(legal) > 100
    assert legal == env.available_actions()


# --- over transports ----------------------------------------------------------------


async def test_programs_are_told_the_task_across_a_worker_process() -> None:
    spec = resolve(EASY)
    owner = Owner()
    async with ActorSystem() as system:
        await system.start(ChildSpec("workers", owner.actor))
        session = await WorkerHost(owner, spec, spec.workers).open()
        said = await session.reset(Task(spec.id, 3319), 0)
        facts = await session.about()
        await session.close()
    assert (facts["task_name"], facts["var_num"]) == ("find-plant", 83)
    assert said.startswith(f"{facts['task_description']}\n")


async def test_served_as_agentgym_serves_it() -> None:
    wire = WireServer([resolve("sciworld-v1")])

    async def post(path: bytes, **body: Any) -> Any:
        import msgspec

        reply = await wire.answer(Request(b"POST", path, body=msgspec.json.encode(body)))
        assert reply.status == 200
        return msgspec.json.decode(reply.body)

    with trio.fail_after(60):
        assert await post(b"/create") == {"id": 0}
        first = await post(b"/reset", id=0, data_idx=3319)
        assert (first["task_name"], first["var_num"]) == ("find-plant", 83)
        assert first["task_description"].startswith("Your task is to find a(n) plant.")
        assert first["observation"].startswith("This outside location is called the outside.")
        lost = await post(b"/step", id=0, action="focus on axe")
        assert (lost["score"], lost["done"]) == (-100, True)
        assert await post(b"/close", id=0) is True


# --- the laws -----------------------------------------------------------------------


def test_every_law_holds() -> None:
    """On two tasks, since solutions take seconds to find when none is on the disk."""
    spec = resolve(f"{EASY}&actions=few&turn_limit=20")
    number = table(Ids.DATA).number
    quick = (number("find-plant", 83), number("lifespan-longest-lived", 3))
    few = replace(spec, splits={"train": quick}, expert_success=1.0)
    first, *others = check(few, examples=3, seed=1)
    assert first.law == "splits are disjoint"  # these are two of many, so it is looked at below
    assert [str(result) for result in broken(others)] == []
    splits_are_disjoint(spec)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("over", sorted(TRANSPORTS))
def test_every_law_holds_over_every_transport(over: str) -> None:
    results = check("sciworld-v1?actions=few&turn_limit=20", examples=2, seed=3, over=over)
    assert [str(result) for result in broken(results)] == []


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("id", ["sciworld-v1?actions=few", "sciworld-v1"])
def test_every_law_holds_in_many_examples(id: str) -> None:
    results = check(id, examples=4 if id == "sciworld-v1" else 25)
    assert [str(result) for result in broken(results)] == []
