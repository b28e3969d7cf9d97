"""What an agent is told before its first observation: as in the published trajectories.

Not here: observations; they are the simulator's own.
"""

from __future__ import annotations

import json
from typing import Final

from ...engine.trajectory import ChatMessage

COMMANDS: Final = (
    ("open/close OBJ", "open/close a container"),
    ("de/activate OBJ", "activate/deactivate a device"),
    ("connect OBJ to OBJ", "connect electrical components"),
    ("disconnect OBJ", "disconnect electrical components"),
    ("use OBJ [on OBJ]", "use a device/item"),
    ("look around", "describe the current room"),
    ("look at OBJ", "describe an object in detail"),
    ("look in OBJ", "describe a container's contents"),
    ("read OBJ", "read a note or book"),
    ("move OBJ to OBJ", "move an object to a container"),
    ("pick up OBJ", "move an object to the inventory"),
    ("put down OBJ", "drop an inventory item"),
    ("pour OBJ into OBJ", "pour a liquid into a container"),
    ("dunk OBJ into OBJ", "dunk a container into a liquid"),
    ("mix OBJ", "chemically mix a container"),
    ("go to LOC", "move to a new location"),
    ("eat OBJ", "eat a food"),
    ("flush OBJ", "flush a toilet"),
    ("focus on OBJ", "signal intent on a task object"),
    ("wait", "take no action for 10 iterations"),
    ("wait1", "take no action for 1 iteration"),
    ("task", "describe current task"),
    ("inventory", "list your inventory"),
)
"""Each command, and what the published opening says of it."""

_LISTED: Final = json.dumps(
    [{"action": action, "description": told} for action, told in COMMANDS], ensure_ascii=False
)

PROMPT: Final = (
    ChatMessage(
        "user",
        "You are an agent for science world. Every round I will give you an observation, you have "
        "to respond an action based on the observation to finish the given task. Here are the "
        f"actions you may take: {_LISTED}\nYour response should use the following format:\n"
        "Thought:\nyour thoughts.\n\nAction:\nyour next action",
    ),
    ChatMessage(
        "assistant",
        "OK. I'll follow your instructions and try my best to solve the task.",
        False,
    ),
)
"""The opening of the published trajectories, word for word."""
