"""AgentGym: the trajectories it publishes, and its protocol, both ways.

`server` serves our worlds to its clients (`rollwave serve`), `client` drives its servers, and
`dialects` is the table that both read. These are imported by name: they know httpx.
"""

from __future__ import annotations

from .trajectories import Published, read_trajectories

__all__ = ["Published", "read_trajectories"]
