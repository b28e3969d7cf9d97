"""AgentGym's formats: the trajectories it publishes. Its wire protocol is not here yet."""

from __future__ import annotations

from .trajectories import Published, read_trajectories

__all__ = ["Published", "read_trajectories"]
