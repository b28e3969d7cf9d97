"""One session of TextCraft: get what is raw, craft what is not, end with the goal.

Commands: `get N item`, `craft N item using n a, m b` and `inventory`. The answers, also
the odd ones, are AgentGym's word for word: a recipe that does not exist is named by the
record that server prints. As its client does, a session reads the first line of an
action, drops everything but letters, digits, commas and spaces, and takes `look` for
`inventory`.

Three differences, none of them in the published data: numbers are at most nine digits
long; naming an input twice never uses up more than there is (that server then fails);
and a finished session answers nothing.

Invariant: nothing is in the inventory a negative number of times; the state is the
task, the inventory in order of arrival, and the latest answer.

Not here: which recipes are live (`recipes`), which tasks there are (`tasks`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

from ...engine.codec import Message, decoder, encode
from ...engine.errors import ConfigError, EnvironmentFault, MessageError
from ..base import Environment, StepResult, Task
from .recipes import Recipe
from .tasks import Setting, numbered, published

_JUNK: Final = re.compile(r"[^A-Za-z0-9, ]+")
_GET: Final = re.compile(r"get ([0-9]{1,9}) (.+)")
_CRAFT: Final = re.compile(r"craft (.*) using (.*)")
_COUNTED: Final = re.compile(r"([0-9]{1,9}) (.+)")


class TextCraftState(Message, frozen=True):
    """A snapshot: everything that a session knows."""

    index: int
    """Task number; -1 for a task given by its texts."""
    commands: tuple[str, ...]
    """The texts of such a task; empty for a numbered one."""
    goal: str
    inventory: tuple[tuple[str, int], ...]
    """In order of arrival, which is the order of the `inventory` answer."""
    observation: str
    over: bool


class TextCraft(Environment):
    """A session on the 562 numbered tasks, or on one task given by its texts."""

    __slots__ = ("_closed", "_fixed", "_index", "_inventory", "_latest", "_over", "_plan", "_task")

    def __init__(self) -> None:
        self._fixed: Setting | None = None
        self._task: Setting | None = None
        self._index = -1
        self._inventory: dict[str, int] = {}
        self._latest = ""
        self._plan: list[str] = []
        self._over = False
        self._closed = False

    @classmethod
    def from_published(cls, commands: Sequence[str], goal: str) -> TextCraft:
        """A session already started on a task given by its own texts.

        `reset` starts the same task again, whatever number it is given.

        Raises:
            ConfigError: a text is not a crafting command, or none crafts the goal.
        """
        session = cls()
        session._fixed = published(commands, goal)
        session._start(session._fixed, -1)
        return session

    def reset(self, task: Task, seed: int) -> str:
        """Start the task; the seed changes nothing, tasks are fixed."""
        if self._closed:
            raise EnvironmentFault("this TextCraft session is closed; make a new one")
        if self._fixed is not None:
            return self._start(self._fixed, -1)
        return self._start(numbered(task.index), task.index)

    def _start(self, setting: Setting, index: int) -> str:
        self._task, self._index = setting, index
        self._inventory = {}
        self._plan = []
        self._over = False
        self._latest = setting.observation
        return self._latest

    def step(self, action: str) -> StepResult:
        setting = self._started()
        if self._over:
            raise EnvironmentFault("the episode in this TextCraft session is over; reset it first")
        command = clean(action)
        self._latest, crafted = self._answer(setting, command)
        self._over = crafted == setting.goal
        if self._plan and self._plan[0] == command:
            del self._plan[0]
        else:
            self._plan = []
        won = self._over
        return StepResult(self._latest, float(won), won, success=won)

    def _answer(self, setting: Setting, command: str) -> tuple[str, str]:
        """The observation, and what was crafted if anything was."""
        if match := _CRAFT.match(command):
            return self._craft(setting, match[1], match[2])
        if match := _GET.match(command):
            item, count = match[2], int(match[1])
            if not setting.book.raw(item):
                return f"Could not find {item}", ""
            self._inventory[item] = self._inventory.get(item, 0) + count
            return f"Got {count} {item}", ""
        if command.startswith("inventory"):
            return self._carried(), ""
        return f"Could not execute {command}", ""

    def _craft(self, setting: Setting, target: str, using: str) -> tuple[str, str]:
        inputs: list[tuple[str, int]] = []
        for part in using.split(","):
            match = _COUNTED.match(part.strip())
            if not match:
                return f"Wrong item format: {part.strip()}", ""
            inputs.append((match[2], int(match[1])))
        match = _COUNTED.match(target)
        count, output = (int(match[1]), match[2]) if match else (1, target)
        kind = output in setting.book.kinds
        have = self._inventory
        # A kind is no thing, so it is never in the inventory: "2 planks" is not enough.
        missing = any(item not in have or have[item] < n for item, n in inputs)
        recipe = None if missing else _matching(setting, output, inputs)
        total = Counter[str]()
        for item, n in inputs:
            total[item] += n
        if missing or (recipe and any(have[item] < n for item, n in total.items())):
            name = "None" if kind else _spell(output)
            return f"Could not find enough items to craft {name}", ""
        if recipe is None:
            return f"Could not find a valid recipe for {_record(output, count, kind)}", ""
        for item, n in total.items():
            have[item] -= n
            if not have[item]:
                del have[item]
        have[output] = have.get(output, 0) + recipe.count
        return f"Crafted {recipe.count} {_spell(output)}", output

    def _carried(self) -> str:
        things = " ".join(f"[{item}] ({count})" for item, count in self._inventory.items())
        return f"Inventory: {things or 'You are not carrying anything.'}"

    def observation(self) -> str:
        self._started()
        return self._latest

    def inventory(self) -> Mapping[str, int]:
        """What is carried, in order of arrival."""
        self._started()
        return dict(self._inventory)

    def available_actions(self) -> Sequence[str]:
        """`inventory`, the raw things the commands name, one at a time, and the commands that
        can be run now as they are written; tags and other amounts are for the agent."""
        setting = self._started()
        if self._over:
            return ()
        actions = ["inventory"]
        for command in setting.commands:
            match = _CRAFT.match(command)
            inputs = [_counted(part) for part in match[2].split(", ")] if match else []
            if all(self._inventory.get(item, 0) >= n for item, n in inputs):
                actions.append(command)
            actions.extend(f"get {n} {item}" for item, n in inputs if setting.book.raw(item))
        return tuple(dict.fromkeys(actions))

    def expert(self) -> str | None:
        setting = self._started()
        if self._over:
            return None
        if not self._plan:
            self._plan = setting.planner.plan(self._inventory) or []
        return self._plan[0] if self._plan else None

    def snapshot(self) -> bytes:
        setting = self._started()
        texts = setting.commands if self._fixed is not None else ()
        inventory = tuple(self._inventory.items())
        return encode(
            TextCraftState(self._index, texts, setting.goal, inventory, self._latest, self._over)
        )

    def restore(self, state: bytes) -> None:
        if self._closed:
            raise EnvironmentFault("this TextCraft session is closed; make a new one")
        try:
            s = decoder(TextCraftState).decode(state)
            given = published(s.commands, s.goal) if s.index == -1 else None
            setting = given or numbered(s.index)
        except (MessageError, ConfigError) as error:
            raise EnvironmentFault(f"not a snapshot of TextCraft: {error}") from None
        if s.goal != setting.goal or any(count < 0 for _, count in s.inventory):
            raise EnvironmentFault("not a snapshot of TextCraft: goal or inventory is impossible")
        self._start(setting, s.index)
        self._fixed = given
        self._inventory = dict(s.inventory)
        self._latest, self._over = s.observation, s.over

    def close(self) -> None:
        self._closed = True
        self._task = None

    def _started(self) -> Setting:
        if self._task is None:
            state = "closed; make a new one" if self._closed else "not reset to a task yet"
            raise EnvironmentFault(f"this TextCraft session is {state}")
        return self._task


def clean(action: str) -> str:
    """The command in an action: its first line, in the characters that commands have."""
    line = action.strip().partition("\n")[0]
    command = " ".join(_JUNK.sub("", line).split())
    return "inventory" if command.lower() == "look" else command


def _matching(setting: Setting, output: str, inputs: Sequence[tuple[str, int]]) -> Recipe | None:
    """The first live recipe that takes exactly these inputs."""
    for recipe in setting.book.recipes.get(output, ()):
        left = list(inputs)
        for wanted, count in recipe.inputs:
            members = setting.book.members(wanted)
            found = next((entry for entry in left if entry[0] in members), None)
            if found is None or found[1] != count:
                break
            left.remove(found)
        else:
            if not left:
                return recipe
    return None


def _counted(part: str) -> tuple[str, int]:
    count, _, item = part.partition(" ")
    return item, int(count)


def _spell(item: str) -> str:
    return f"minecraft:{item.replace(' ', '_')}"


def _record(item: str, count: int, kind: bool) -> str:
    """The record by which AgentGym's server names a recipe it does not have."""
    name = f"'{_spell(item)}'"
    tag, thing = (name, None) if kind else (None, name)
    return f"ItemTagWithCount(item_tag=ItemTag(tag={tag}, item_id={thing}), count={count})"
