"""Our ALFWorld and alfworld's own engine play the same games: every text, list and reward.

Run it with `make alfworld-conformance`, which installs that engine in a place of its own and
compares both wordings.
ALFWORLD_GAMES says how many games of each type are played (1 if not given).
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from rollwave.engine.errors import MissingDependency
from rollwave.envs.alfworld import reading
from rollwave.envs.alfworld.environment import AlfWorld
from rollwave.envs.alfworld.game import Game
from rollwave.envs.alfworld.reference import Reference
from rollwave.envs.alfworld.rules import TREATED
from rollwave.envs.alfworld.tables import KINDS, Kind
from rollwave.envs.alfworld.tasks import SPLITS, numbered, wanted
from rollwave.envs.base import Environment, Task

GAMES = int(os.environ.get("ALFWORLD_GAMES", "1"))
WALK = 30

pytestmark = pytest.mark.timeout(3600)


@pytest.fixture(scope="module")
def reference() -> Iterator[Reference]:
    try:
        engine = Reference()
    except MissingDependency as error:
        pytest.skip(f"{error}; make alfworld-conformance does it")
    yield engine
    engine.close()


def tasks(kind: Kind) -> list[int]:
    """Some of each split in turn, drawn once and for all."""
    chance = random.Random(kind)
    pools = [[i for i in members if wanted(i).kind == kind] for members in SPLITS.values()]
    for pool in pools:
        chance.shuffle(pool)
    return [pools[n % len(pools)][n // len(pools)] for n in range(GAMES)]


def ours(reference: Reference, game: Game, *, knows: bool) -> AlfWorld:
    return AlfWorld(lambda _: game, reference.wording, show="none", knows=knows)


def agree(one: Environment, two: Environment, action: str) -> bool:
    """Say the same to both; whether the episode is over."""
    mine, theirs = one.step(action), two.step(action)
    assert mine == theirs, action
    if not mine.done:
        assert list(one.available_actions()) == list(two.available_actions()), action
    return mine.done


@pytest.mark.parametrize("kind", KINDS)
def test_both_engines_say_the_same(reference: Reference, kind: Kind) -> None:
    for index in tasks(kind):
        game = numbered(index)
        task = Task("alfworld-v1", index)
        for walk in ("planner", "search", "random"):
            mine = ours(reference, game, knows=walk == "planner")
            chance = random.Random(index)
            assert mine.reset(task, 0) == reference.play(game)
            assert list(mine.available_actions()) == list(reference.available_actions())
            for _ in range(WALK):
                advice = mine.expert()
                assert advice is not None
                if walk == "random":
                    advice = draw(chance, mine, advice)
                if agree(mine, reference, advice):
                    break
            assert walk != "planner" or (mine.observation() and mine.expert() is None)


def test_everything_that_can_be_done_to_things(reference: Reference) -> None:
    """Slice, clean, heat and cool an apple, and look at it each time."""
    kitchens = [i for i in SPLITS["test"] if wanted(i).kind == "two" and wanted(i).room <= 30]
    for index in kitchens[:GAMES]:
        game = numbered(index)
        mine = ours(reference, game, knows=True)
        assert mine.reset(Task("alfworld-v1", index), 0) == reference.play(game)
        apple, its = lies(game, "apple")
        knife, knifes = lies(game, "knife")
        ways = {
            verb: next(r.name for r in game.receptacles if r.kind == kind)
            for verb, kind in TREATED.items()
        }
        script = [
            *(f"go to {knifes}", f"open {knifes}", f"take {knife} from {knifes}"),
            *(f"examine {knife}", f"go to {its}", f"open {its}", f"slice {apple} with {knife}"),
            *("go to countertop 1", reference.wording.put.format(knife, "countertop 1"), "look"),
            *(f"go to {its}", f"take {apple} from {its}", f"examine {apple}", f"close {its}"),
        ]
        for verb in ("clean", "heat", "cool", "clean", "heat"):
            place = ways[verb]
            script += [f"go to {place}", f"{verb} {apple} with {place}", f"examine {apple}"]
        said = []
        for action in script:
            assert not agree(mine, reference, action)
            said.append(mine.observation())
        for words in ("sliced", "clean sliced", "hot and clean sliced", "cool and clean sliced"):
            assert f"This is a {words} {apple}." in said


def lies(game: Game, kind: str) -> tuple[str, str]:
    """The name of a thing of a type, and of the receptacle that it lies in."""
    thing = next(t for t in game.things if t.kind == kind)
    return thing.name, game.receptacles[thing.start].name


def test_a_hand_made_game(reference: Reference) -> None:
    """What generated games do not have: see the file."""
    problem = Path(__file__).with_name("alfworld_game.pddl").read_text(encoding="utf-8")
    game = reading.read(problem, "put a clean fork in drawer")
    mine = ours(reference, game, knows=True)
    assert mine.reset(Task("x", 0), 0) == reference.play(game)
    put = reference.wording.put
    for action in [
        *("go to drawer 1", "look", "take mug 1 from drawer 1", "examine mug 1"),
        *("go to drawer 2", "open drawer 2", put.format("mug 1", "drawer 2"), "look"),
        *("take mug 1 from drawer 2", "look", put.format("mug 1", "drawer 1"), "look"),
        *("go to sinkbasin 1", "look", "take fork 2 from sinkbasin 1"),
        *("clean fork 2 with sinkbasin 1", "examine fork 2", "go to drawer 1"),
        *("close drawer 1", "look", "open drawer 1"),
    ]:
        assert not agree(mine, reference, action)
    assert agree(mine, reference, put.format("fork 2", "drawer 2"))
    assert mine.observation().startswith("You ")


def draw(chance: random.Random, mine: AlfWorld, advice: str) -> str:
    """Half of the time what the expert says, else anything: also what cannot be done."""
    if chance.random() < 0.4:
        return advice
    legal = list(mine.available_actions())
    rare = [action for action in legal if not action.startswith(("go to", "take"))]
    if chance.random() < 0.15:
        words = chance.choice(legal).split()
        chance.shuffle(words)
        return " ".join(words)
    return chance.choice(rare if chance.random() < 0.6 else legal)
