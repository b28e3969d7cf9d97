"""The records: Turn, Trajectory, Group and Wave, and the five ways an episode ends.

An *episode* is live; a *trajectory* is its record, made exactly once.

Invariants:

* every trajectory has exactly one `Outcome`;
* `reward` is a number iff the outcome is SUCCESS, FAILURE or TRUNCATED: a fault
  is never a reward;
* `token_ids`, `loss_mask` and `logprobs` have one entry for each token, stored as
  sampled; the prompt of turn k is `token_ids[:turns[k].start]`, hence a prefix of
  the prompt of turn k+1.

Not here: how trajectories are stored (`store`) or turned into tensors (`learners`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import StrEnum
from typing import Final

from .codec import Message
from .errors import BadSample, FaultKind


class Outcome(StrEnum):
    """How an episode ended. Exactly one of these, whatever dies around it."""

    SUCCESS = "success"
    """The environment ended the episode and its success rule holds."""
    FAILURE = "failure"
    """The environment ended the episode without success."""
    TRUNCATED = "truncated"
    """A limit of ours (turns, tokens) ended it; the reward so far counts."""
    FAULT = "fault"
    """Something broke. No reward; kept, counted by kind, never trained on."""
    CANCELLED = "cancelled"
    """Somebody asked us to stop. No reward."""

    @property
    def scored(self) -> bool:
        """Whether a trajectory with this outcome carries a reward."""
        return self in _SCORED


_SCORED: Final = frozenset({Outcome.SUCCESS, Outcome.FAILURE, Outcome.TRUNCATED})


class FinishReason(StrEnum):
    """Why the sampler stopped."""

    STOP = "stop"
    """The model closed its turn: the last token is the closer, and carries loss."""
    LENGTH = "length"
    """The token limit cut it: no closer was sampled."""
    SCRIPTED = "scripted"
    """No model: an expert or random policy wrote the completion."""


class ChatMessage(Message, frozen=True):
    """One message of a conversation. `loss` follows AgentTraj: None for what the agent
    did not write, False for canned agent replies, True for real agent turns."""

    role: str  # "system", "user" or "assistant"
    text: str
    loss: bool | None = None


class Fault(Message, frozen=True):
    """What broke, where, and in which turn."""

    kind: FaultKind
    text: str
    turn: int = 0


class Turn(Message, frozen=True):
    """One observation → completion → action → result."""

    observation: str
    """What the agent saw before it wrote."""
    completion: str
    """What it wrote, decoded for people; never re-tokenised."""
    action: str
    """What was handed to the environment; empty if the format was not met."""
    reward: float
    """Reward earned by this step."""
    start: int = 0
    """Index into `Trajectory.token_ids` of the first sampled token."""
    end: int = 0
    """Index after the last sampled token; `start == end` where there are no tokens."""
    policy_version: int = 0
    finish: FinishReason = FinishReason.SCRIPTED
    format_error: bool = False
    """The completion did not follow the action format; the environment was not stepped."""
    generate_seconds: float = 0.0
    step_seconds: float = 0.0


class Trajectory(Message, frozen=True):
    """The record of one episode. Immutable; written once."""

    id: str
    """Unique in a run: `w<wave>/<task id>/<attempt>`."""
    env: str
    """Versioned environment id with its options, as the registry takes it."""
    task_id: str
    split: str
    wave: int
    attempt: int
    seed: int
    """Of the attempt: turn seeds hang below it."""
    outcome: Outcome
    reward: float | None
    """Sum of the step rewards, in the environment's normalised range; None unless scored."""
    environment_seed: int = 0
    """What the environment was reset with: the same for every attempt of a group."""
    terminated: bool = False
    """The environment ended the episode."""
    truncation: str = ""
    """Which limit of ours ended it: "turns", "tokens" or ""."""
    fault: Fault | None = None
    prompt: tuple[ChatMessage, ...] = ()
    """What came before the first observation: system text and canned exchange."""
    turns: tuple[Turn, ...] = ()
    final_observation: str = ""
    """The environment's answer to the last action."""
    token_ids: bytes = b""
    """uint32 [n]: everything the model saw and wrote, as sampled."""
    loss_mask: bytes = b""
    """uint8 [n]: 1 iff the agent sampled that token."""
    logprobs: bytes = b""
    """float32 [n]: behaviour log-probability where the mask is 1, else 0."""
    policy: str = ""
    """Who acted: a model directory or URL, "expert" or "random"."""
    versions: tuple[int, int] = (0, 0)
    """Oldest and newest policy version that produced a token."""
    temperature: float = 0.0
    started: float = 0.0
    """Seconds on the engine's clock."""
    seconds: float = 0.0

    @property
    def success(self) -> bool:
        """Whether the environment's success rule held at the end."""
        return self.outcome is Outcome.SUCCESS

    @property
    def tokens(self) -> int:
        """Number of tokens, prompt and completions together."""
        return len(self.token_ids) // 4

    @property
    def sampled_tokens(self) -> int:
        """Number of tokens the agent sampled."""
        return self.loss_mask.count(1)

    def conversation(self) -> list[ChatMessage]:
        """The episode as messages: prompt, then observation and completion in turn."""
        messages = list(self.prompt)
        for turn in self.turns:
            messages.append(ChatMessage("user", turn.observation))
            messages.append(ChatMessage("assistant", turn.completion, True))
        if self.final_observation:
            messages.append(ChatMessage("user", self.final_observation))
        return messages

    def check(self) -> None:
        """Raise `BadSample` if the record breaks an invariant of this module."""
        broken = _broken_rule(self)
        if broken:
            raise BadSample(f"trajectory {self.id}: {broken}")


def _broken_rule(t: Trajectory) -> str:
    """Name the first broken invariant, or nothing."""
    n = len(t.loss_mask)
    if (t.reward is not None) != t.outcome.scored:
        return f"outcome {t.outcome} with reward {t.reward}"
    if t.reward is not None and not math.isfinite(t.reward):
        return f"reward {t.reward} is not finite"
    if (t.fault is not None) != (t.outcome is Outcome.FAULT):
        return f"outcome {t.outcome} with fault {t.fault}"
    if len(t.token_ids) != 4 * n or len(t.logprobs) != 4 * n:
        return (
            f"{len(t.token_ids) // 4} tokens, {n} mask entries and {len(t.logprobs) // 4} log-probs"
        )
    if t.loss_mask.strip(b"\x00\x01"):
        return "a loss mask entry is neither 0 nor 1"
    position = 0
    sampled = 0
    for index, turn in enumerate(t.turns):
        if not position <= turn.start <= turn.end <= n:
            return f"turn {index} spans tokens {turn.start}:{turn.end} of {n}, after {position}"
        if t.loss_mask[turn.start : turn.end].count(1) != turn.end - turn.start:
            return f"turn {index} has sampled tokens outside the loss mask"
        sampled += turn.end - turn.start
        position = turn.end
    if sampled != t.loss_mask.count(1):
        return "the loss mask covers tokens that no turn sampled"
    return ""


class Group(Message, frozen=True):
    """All attempts at one task within one wave, in attempt order."""

    task_id: str
    wave: int
    trajectories: tuple[Trajectory, ...]

    def rewards(self) -> list[float]:
        """Rewards of the scored members. Faulted and cancelled ones cannot enter."""
        return [t.reward for t in self.trajectories if t.reward is not None]


class Wave(Message, frozen=True):
    """A sealed set of trajectories, in manifest order, with the hash of its file."""

    number: int
    policy_version: int
    digest: str
    trajectories: tuple[Trajectory, ...]

    def groups(self) -> list[Group]:
        """The trajectories by task, in first-seen order."""
        return group(self.trajectories, self.number)


def group(trajectories: Sequence[Trajectory], wave: int) -> list[Group]:
    """Group trajectories by task, in first-seen order; members by attempt."""
    by_task: dict[str, list[Trajectory]] = {}
    for trajectory in trajectories:
        by_task.setdefault(trajectory.task_id, []).append(trajectory)
    return [
        Group(task_id, wave, tuple(sorted(members, key=lambda t: t.attempt)))
        for task_id, members in by_task.items()
    ]


def count_outcomes(trajectories: Sequence[Trajectory]) -> dict[str, int]:
    """Count by outcome name; every outcome is listed, also with 0."""
    counts = {outcome.value: 0 for outcome in Outcome}
    for trajectory in trajectories:
        counts[trajectory.outcome.value] += 1
    return counts
