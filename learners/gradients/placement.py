"""Where the reward of a trajectory goes: onto its action tokens, and what is taken off.

    last       all of it at the last action token
    uniform    a positive reward evenly over the action tokens; any other as "last"
    segments   at the last token of each turn, a share that falls by `segment_discount` a turn
               towards the first
    turns      what each step paid, at its turn's last token

Invariants: rewards stand at action tokens alone; before penalties they sum up to the
trajectory's reward, whatever the placement ("turns": to the sum of what its steps paid).

Sources: verl, AgentGym-RL, OpenManus-RL and ETO's PPO, which differ. Published code puts
the reward on the last token, which after the final observation is no action's, and then
multiplies it by the mask. Not here: KL (`kl`).
"""

from __future__ import annotations

from collections.abc import Sequence

from ...engine.errors import BadSample
from ...engine.trajectory import Trajectory
from ..settings.policy_gradient import RewardSettings


def place(trajectory: Trajectory, mask: Sequence[bool], settings: RewardSettings) -> list[float]:
    """The reward of every token, penalties included: [n].

    Args:
        mask: [n], where it carries loss; at least one entry is set.

    Raises:
        BadSample: the trajectory has no reward, or the mask none of its tokens.
    """
    if trajectory.reward is None:
        raise BadSample(f"trajectory {trajectory.id} has no reward: it was not scored")
    actions = [index for index, acted in enumerate(mask) if acted]
    if not actions:
        raise BadSample(f"trajectory {trajectory.id} has no action token to carry its reward")
    rewards = [0.0] * len(mask)
    ends = turn_ends(trajectory, mask)
    match settings.placement:
        case "uniform" if trajectory.reward > 0:
            for index in actions:
                rewards[index] = trajectory.reward / len(actions)
        case "segments":
            shares = [settings.segment_discount**k for k in reversed(range(len(ends)))]
            for end, share in zip(ends, shares, strict=True):
                rewards[end] += trajectory.reward * share / sum(shares)
        case "turns":
            for end, turn in zip(ends, trajectory.turns, strict=True):
                rewards[end] += turn.reward
        case _:
            rewards[actions[-1]] = trajectory.reward
    for end, turn in zip(ends, trajectory.turns, strict=True):
        if turn.format_error:
            rewards[end] -= settings.invalid_penalty
    if settings.overlong == "penalty" and overlong(trajectory):
        rewards[actions[-1]] -= settings.overlong_penalty
    return rewards


def overlong(trajectory: Trajectory) -> bool:
    """Whether the token limit cut the episode."""
    return trajectory.truncation == "tokens"


def turn_ends(trajectory: Trajectory, mask: Sequence[bool]) -> list[int]:
    """The last action token of each turn; of one without any, the nearest before, or after."""
    first = next(index for index, acted in enumerate(mask) if acted)
    ends: list[int] = []
    for turn in trajectory.turns:
        spoken = [index for index in range(turn.start, turn.end) if mask[index]]
        ends.append(spoken[-1] if spoken else ends[-1] if ends else first)
    return ends
