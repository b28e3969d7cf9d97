"""The rules of ALFWorld as properties: nothing is lost, commands do things, goals are right."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rollwave.envs.alfworld import reading
from rollwave.envs.alfworld.environment import AlfWorld
from rollwave.envs.alfworld.game import NOWHERE, Game
from rollwave.envs.alfworld.problem import write
from rollwave.envs.alfworld.rules import GO, State
from rollwave.envs.alfworld.tables import KINDS
from rollwave.envs.alfworld.tasks import numbered, wanted
from rollwave.envs.alfworld.wording import AGENTGYM, LATER, NOTHING, Wording
from rollwave.envs.base import Task

tasks = st.integers(0, 3119)
seeds = st.integers(0, 2**32)
wordings = st.sampled_from([AGENTGYM, LATER])


def start(index: int, wording: Wording = AGENTGYM) -> AlfWorld:
    env = AlfWorld(numbered, wording, show="none", knows=True)
    env.reset(Task("alfworld-v1", index), 0)
    return env


def state_of(env: AlfWorld) -> State:
    assert env._state is not None
    return env._state


def wander(env: AlfWorld, seed: int, steps: int) -> None:
    """Mostly rare commands, at times what the expert says; stops before the end."""
    chance = Random(seed)
    for _ in range(steps):
        legal = env.available_actions()
        rare = [action for action in legal if not action.startswith("go to")]
        advice = env.expert()
        action = chance.choice(rare if chance.random() < 0.6 else legal)
        if chance.random() < 0.3 and advice:
            action = advice
        if env.step(action).done:
            env.reset(Task("alfworld-v1", env._index), 0)


def conserved(state: State) -> None:
    """Each thing is in one place, and both ways of saying where agree."""
    placed = [t for contents in state.contents for t in contents]
    assert len(placed) == len(set(placed))
    assert all(contents == sorted(contents) for contents in state.contents)
    for t, thing in enumerate(state.game.things):
        r = state.place_of[t]
        if r == NOWHERE:
            assert t == state.held or thing.start == NOWHERE
            assert t not in placed
        else:
            assert t != state.held
            assert t in state.contents[r]
        if not thing.takeable:
            assert r == thing.start
    if state.held != NOWHERE:
        assert state.game.things[state.held].takeable


@settings(max_examples=60, deadline=None)
@given(index=tasks, seed=seeds)
def test_nothing_is_lost_or_doubled(index: int, seed: int) -> None:
    env = start(index)
    for step in range(12):
        wander(env, seed + step, 3)
        conserved(state_of(env))
        for r, contents in enumerate(state_of(env).contents):
            for t in contents:  # what the agent moved lies where it may
                thing, place = state_of(env).game.things[t], state_of(env).game.receptacles[r]
                assert thing.start == r or state_of(env).game.admits(place, thing)


@settings(max_examples=12, deadline=None)
@given(index=tasks, seed=seeds, wording=wordings, steps=st.integers(0, 25))
def test_listed_commands_do_something_and_nothing_else_does(
    index: int, seed: int, wording: Wording, steps: int
) -> None:
    env = start(index, wording)
    wander(env, seed, steps)
    before = env.snapshot()
    legal = env.available_actions()
    assert list(legal) == sorted(set(legal))
    for action in legal:
        assert env.step(action).observation != NOTHING
        env.restore(before)
    game = state_of(env).game
    every = {f"take {t.name} from {r.name}" for t in game.things for r in game.receptacles}
    for r, place in enumerate(game.receptacles):
        verbs = ("go to", "open", "close", "examine", "take", "heat", "use")
        every |= {f"{verb} {place.name}" for verb in verbs}
        every |= {f"{verb} {game.things[0].name} with {place.name}" for verb in verbs}
        every |= {wording.put.format(t.name, place.name) for t in game.things[r % 5 :: 5]}
    every |= {f"examine {t.name}" for t in game.things} | {f"use {t.name}" for t in game.things}
    every |= (
        {action.upper() for action in legal} | {f"{action}." for action in legal} | {"", "help"}
    )
    shown = AlfWorld(numbered, wording)
    shown.restore(before)
    for action in sorted(every - set(legal)):
        answer = shown.step(action)
        assert (answer.observation, answer.reward, answer.terminated) == (NOTHING, 0.0, False)
        assert shown.available_actions() == (() if answer.done else legal)
        shown.restore(before)


def facts(state: State) -> set[tuple[str, ...]]:
    """The state as the planning domain would say it, for a checker that knows no rules."""
    game = state.game
    found: set[tuple[str, ...]] = set()
    for r, place in enumerate(game.receptacles):
        found.add(("receptacleType", place.id, place.kind))
        if place.place == state.place:
            found.add(("here", place.id))
        for t in state.contents[r]:
            found.add(("in", game.things[t].id, place.id))
    for t, thing in enumerate(game.things):
        found.add(("objectType", thing.id, thing.kind))
        for name in ("hot", "cool", "clean", "used"):
            if getattr(state, name) >> t & 1:
                found.add((name, thing.id))
    if state.held != NOWHERE:
        found.add(("holds", game.things[state.held].id))
    return found


def reached(game: Game, known: set[tuple[str, ...]]) -> bool:
    """The published goals, word for word, over all things and receptacles."""
    goal = game.goal
    things = [t.id for t in game.things if ("objectType", t.id, goal.thing) in known]
    places = [r.id for r in game.receptacles if ("receptacleType", r.id, goal.target) in known]
    if goal.kind == "look":
        lit = any(
            ("objectType", t.id, goal.target) in known
            and t.toggleable
            and ("used", t.id) in known
            and any(
                ("in", t.id, r.id) in known and ("here", r.id) in known for r in game.receptacles
            )
            for t in game.things
        )
        return lit and any(("holds", t) in known for t in things)
    if goal.kind == "two":
        return any(
            one != two and ("in", one, r) in known and ("in", two, r) in known
            for r in places
            for one in things
            for two in things
        )
    mark = {"heat": "hot", "cool": "cool", "clean": "clean", "place": ""}[goal.kind]
    return any(
        ("in", t, r) in known and (not mark or (mark, t) in known) for t in things for r in places
    )


@settings(max_examples=60, deadline=None)
@given(index=tasks, seed=seeds)
def test_goals_agree_with_an_independent_checker(index: int, seed: int) -> None:
    env = start(index)
    chance = Random(seed)
    for _ in range(50):
        legal = env.available_actions()
        advice = env.expert()
        assert advice is not None
        action = advice if chance.random() < 0.8 else chance.choice(legal)
        answer = env.step(action)
        state = state_of(env)
        assert answer.success == state.won() == reached(state.game, facts(state))
        if answer.done:
            break


@pytest.mark.parametrize("kind", KINDS)
def test_treating_and_examining_in_words(kind: str) -> None:
    """Whatever the type of task, the expert's way has the answers that belong to it."""
    index = next(i for i in range(2420) if wanted(i).kind == kind)
    env, said = start(index), []
    while (action := env.expert()) is not None:
        said.append(env.step(action).observation)
    verb = {"heat": "You heat", "cool": "You cool", "clean": "You clean", "look": "You turn on"}
    assert any(text.startswith(verb.get(kind, "You put")) for text in said)
    assert env.available_actions() == ()


@settings(max_examples=40, deadline=None)
@given(index=tasks)
def test_a_problem_read_back_is_the_same_game(index: int) -> None:
    game = numbered(index)
    text = write(game)
    again = reading.read(text, game.sentence)
    assert (again.receptacles, again.things) == (game.receptacles, game.things)
    assert (again.goal, again.holds, again.start) == (game.goal, game.holds, game.start)
    assert write(again) == text


@settings(max_examples=40, deadline=None)
@given(index=tasks, wording=wordings)
def test_no_two_commands_have_one_text(index: int, wording: Wording) -> None:
    env = start(index, wording)
    game = state_of(env).game
    names = [thing.name for thing in game.things] + [place.name for place in game.receptacles]
    assert len(set(names)) == len(names)
    wander(env, index, 10)
    commands = state_of(env).commands()
    assert len({wording.command(game, command) for command in commands}) == len(commands)
    assert all(command.verb != GO for command in commands)
