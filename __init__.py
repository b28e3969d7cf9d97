"""Rollwave: thousands of LLM-agent sessions under one supervisor, and a learner between the waves.

The names below are the public face. Everything heavy (torch, transformers, vLLM,
pyarrow) loads when it is first used, never on import.
"""

from __future__ import annotations

__version__ = "0.1.0"
