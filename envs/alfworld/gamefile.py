"""Published game files, where a user has them: ALFWorld's folders of `json_2.1.1`.

A game is a folder, or its file `game.tw-pddl`: JSON with the planning problem, and with the
sentence of the goal in its grammar. A folder without that file needs `initial_state.pddl`
and `traj_data.json`, whose task gives the sentence.

    game = load(Path("json_2.1.1/train/pick_and_place_simple-Mug-None-Desk-308/trial_…"))
    registry.register(games_family(Path("json_2.1.1")))

Invariant: files are read as data, with limits; a file that is no such game is one
ConfigError that names it.

Not here: what a problem means (`reading`).
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from ...engine.errors import ConfigError
from ..base import EnvFamily, EnvSpec
from .environment import AlfWorld
from .game import Game
from .generate import SENTENCES
from .prompts import prompt
from .reading import read
from .tables import PUBLISHED_KINDS
from .wording import WORDINGS

GAME: Final = "game.tw-pddl"
PROBLEM: Final = "initial_state.pddl"
TASK: Final = "traj_data.json"

MAX_BYTES: Final = 16 * 1024 * 1024
"""Largest file that is read."""
MAX_GAMES: Final = 20_000
"""Most games in one folder; the published one has some 9,000."""

_SPLITS: Final = {
    "train": "train",
    "valid_train": "dev",
    "valid_seen": "test",
    "valid_unseen": "unseen",
}
"""ALFWorld's folders, and the split that each becomes."""

_SENTENCE: Final = re.compile(r'"Your task is to: ((?:[^"\\]|\\.){1,2000}?)\.?"')

T = TypeVar("T")


class _Game(msgspec.Struct):
    pddl_problem: str
    grammar: str
    solvable: bool = True


class _Target(msgspec.Struct):
    object_target: str
    parent_target: str = ""
    toggle_target: str = ""
    mrecep_target: str = ""
    object_sliced: bool = False


class _Task(msgspec.Struct):
    task_type: str
    pddl_params: _Target


def load(path: Path) -> Game:
    """The game of a folder, or of a `game.tw-pddl`.

    Raises:
        ConfigError: there is none, or it is not one of the six types of task.
    """
    file = path / GAME if path.is_dir() else path
    try:
        if file.exists():
            game = _json(file, _Game)
            return read(game.pddl_problem, _said(game))
        sentence = _templated(_json(path / TASK, _Task))
        return read(_text(path / PROBLEM).decode("utf-8"), sentence)
    except (ConfigError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no game of ALFWorld: {error}") from None


def _text(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {file.name}: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{file.name} has more than {MAX_BYTES} bytes")
    return data


def _json(file: Path, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(_text(file), type=kind)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ConfigError(f"{file.name}: {error}") from None


def _said(game: _Game) -> str:
    """The sentence of the goal in a game's grammar, where it is a JSON string."""
    if not game.solvable:
        raise ConfigError("it says of itself that it cannot be solved")
    match = _SENTENCE.search(game.grammar)
    if match is None:
        raise ConfigError("its grammar does not say what the task is")
    try:
        return msgspec.json.decode(f'"{match[1]}"', type=str)
    except msgspec.DecodeError:
        raise ConfigError("its grammar says what the task is in no JSON string") from None


def _templated(task: _Task) -> str:
    """The sentence of the goal where no grammar has it: the first of the two templates."""
    kind = PUBLISHED_KINDS.get(task.task_type)
    target = task.pddl_params
    if kind is None or target.object_sliced or target.mrecep_target:
        sliced = " of a slice" if target.object_sliced else ""
        raise ConfigError(f"task type {task.task_type!r:.80}{sliced} is none of the six played")
    where = target.toggle_target if kind == "look" else target.parent_target
    return SENTENCES[kind][0].format(target.object_target.lower(), where.lower())


def games_family(folder: Path, id: str = "alfworld-games-v1") -> EnvFamily:
    """The games below a folder as an environment, to be registered.

    Games are numbered in the order of their paths. Those below a folder called train,
    valid_train, valid_seen or valid_unseen belong to train, dev, test or unseen; all others
    to test. A game is read when it is first played.

    Raises:
        ConfigError: there are none, or too many.
    """
    files = sorted(folder.rglob(GAME))
    if not files or len(files) > MAX_GAMES:
        raise ConfigError(f"{folder} has {len(files)} files {GAME}; needed: 1 to {MAX_GAMES}")
    splits: dict[str, list[int]] = {}
    for index, file in enumerate(files):
        parts = file.relative_to(folder.parent).parts
        split = next((_SPLITS[part] for part in parts if part in _SPLITS), "test")
        splits.setdefault(split, []).append(index)

    @lru_cache(maxsize=1024)
    def game(index: int) -> Game:
        if not 0 <= index < len(files):
            raise ConfigError(f"{id} has tasks 0 to {len(files) - 1}, not {index}")
        return load(files[index])

    def build(*, id: str, wording: str) -> EnvSpec:
        if wording not in WORDINGS:
            raise ConfigError(f"{id}: wording is {' or '.join(WORDINGS)}, not {wording!r}")
        spoken = WORDINGS[wording]
        return EnvSpec(
            id=id,
            make=lambda: AlfWorld(game, spoken),
            splits=splits,
            prompt=prompt(spoken),
            turn_limit=30,
            expert_success=0.9,
        )

    return EnvFamily(
        id=id,
        summary=f"{len(files)} games of ALFWorld from files",
        build=build,
        options={"wording": "0.3.3"},
    )
