"""What there is to say about a wave before anything of it is chosen: rewards, successes, age.

Invariant: only scored episodes count, so that every algorithm says the same of one wave.

Not here: what a campaign's own table says of it (`actors.wave_figures`).
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from ...engine.trajectory import Trajectory
from .filters import unscored


def staleness(trajectory: Trajectory, number: int) -> int:
    """Policies by which the oldest token is behind the one that is trained on wave `number`."""
    return max(0, number - 1 - trajectory.versions[0])  # wave m trains what wave m-1 made


def moments(trajectories: Sequence[Trajectory], number: int) -> dict[str, float]:
    """Figures of wave `number`; none where no episode was scored."""
    scored = [t for t in trajectories if not unscored(t)]
    if not scored:
        return {}
    rewards = [t.reward or 0.0 for t in scored]
    return {
        "reward_mean": statistics.fmean(rewards),
        "reward_std": statistics.pstdev(rewards),
        "success_rate": statistics.fmean(float(t.success) for t in scored),
        "turns": statistics.fmean(len(t.turns) for t in scored),
        "staleness_mean": statistics.fmean(staleness(t, number) for t in scored),
        "trajectories": float(len(scored)),
    }
