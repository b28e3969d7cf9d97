"""Our ALFWorld and alfworld's own engine play the same games: every text, list and reward.

Run it with `make alfworld-conformance`, which installs that engine in a place of its own.
ALFWORLD_GAMES says how many games of each type are played (2 if not given).
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import pytest
from rollwave.engine.errors import MissingDependency
from rollwave.envs.alfworld.environment import AlfWorld
from rollwave.envs.alfworld.game import Game
from rollwave.envs.alfworld.reference import Reference
from rollwave.envs.alfworld.tables import KINDS, Kind
from rollwave.envs.alfworld.tasks import SPLITS, numbered, wanted
from rollwave.envs.base import Environment, Task

GAMES = int(os.environ.get("ALFWORLD_GAMES", "2"))
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
