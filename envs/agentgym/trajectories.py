"""AgentGym's published trajectories: what `engine.agenttraj` reads, under AgentGym's roof.

The format is also one that learners take in and give out (`learners.exchange`), so it is read
in the one package that both may import.
"""

from __future__ import annotations

from ...engine.agenttraj import Published, read_trajectories

__all__ = ["Published", "read_trajectories"]
