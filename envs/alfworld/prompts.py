"""What an agent is told before its first observation. The words are ours.

Not here: observations (`wording`).
"""

from __future__ import annotations

from ...engine.trajectory import ChatMessage
from .wording import Wording


def prompt(wording: Wording) -> tuple[ChatMessage, ...]:
    """The rules of the house, with the commands as the wording spells them."""
    return (
        ChatMessage(
            "user",
            "You are in a room of a house and have a task there. First you are told what the "
            "room holds and what the task is; then, turn by turn, you say one command and are "
            "told what came of it. You can carry one thing. To see what lies in or on something "
            "you have to go there, and to open it if it is closed.\n\n"
            "Commands, with the names and numbers that you were told:\n"
            "go to <place>\nopen <place>\nclose <place>\ntake <thing> from <place>\n"
            f"{wording.put.format('<thing>', '<place>')}\n"
            "heat <thing> with <microwave>\ncool <thing> with <fridge>\n"
            "clean <thing> with <sinkbasin>\nslice <thing> with <knife>\nuse <lamp>\n"
            "examine <thing or place>\ninventory\nlook\n"
            'Whatever cannot be done is answered "Nothing happens."\n\n'
            "Your answer has this format:\nThought:\n<your thought>\n\n"
            "Action:\n<your command>",
        ),
        ChatMessage("assistant", "I will do the task, one command at a time.", False),
    )
