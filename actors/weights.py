"""Policies on their way from the learner to inference: save → announce → confirm.

    models/policy-0003/      saved by the learner, complete or not there at all
      └ SwapWeights ─▶ inference ─▶ WeightsSwapped     only then is 3 the current policy

Invariant: until inference has confirmed a policy, the one before is current: it is what
is served, what a restart loads, and what stays on disk. A publish that fails changes
nothing but the time it took.

Not here: how weights are loaded (`backends`) and what is in the directory (`learners`).
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from ..engine.errors import (
    ActorRestarted,
    AskFailed,
    ConfigError,
    DeadlineExceeded,
    WeightSwapFailed,
    storage_error,
)
from ..engine.ref import ActorRef
from .inference import PolicyHolder
from .protocol import SwapWeights, WeightsSwapped

PUBLISH_SECONDS: Final = 600.0
"""Running requests end and the weights are loaded within this, or the swap is given up."""
_ATTEMPTS: Final = 3
"""Asks of one publish, if inference is restarted in the middle of it."""
_NAME: Final = re.compile(r"policy-(\d{4,})")


async def publish(
    inference: ActorRef,
    holder: PolicyHolder,
    version: int,
    path: str,
    *,
    seconds: float = PUBLISH_SECONDS,
) -> WeightsSwapped:
    """Let inference serve the policy at `path`; returns when it has confirmed it.

    If inference dies meanwhile, its supervisor restarts it with the policy before, and
    this asks again. Cancelled, or late, the policy before is loaded anew.

    Raises:
        WeightSwapFailed: the policy cannot be served; the one before is current.
        ActorDead: there is no inference any more.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        way_out = f"version {holder.version} is current; the same command tries again"
        try:
            return await inference.ask(SwapWeights(version, path), WeightsSwapped, timeout=seconds)
        except ActorRestarted as error:
            if (holder.version, holder.path) == (version, path):
                # It died after the swap, before it could say so: the next one starts with it.
                return WeightsSwapped(version, 0.0)
            if attempt == _ATTEMPTS:
                raise WeightSwapFailed(
                    f"inference died in each of {_ATTEMPTS} swaps to policy version {version}; "
                    f"{way_out}"
                ) from error
        except AskFailed as error:
            why = error.text.removeprefix("WeightSwapFailed: ")
            raise WeightSwapFailed(
                f"policy version {version} cannot be served: {why}; {way_out}"
            ) from error
        except DeadlineExceeded as error:
            raise WeightSwapFailed(
                f"policy version {version} was not confirmed within {seconds:g} s; {way_out}"
            ) from error
    raise AssertionError("unreachable: the last attempt returns or raises")


class PolicyDirectories:
    """The model directories of one run, by version: `models/policy-0003`."""

    def __init__(self, root: str | Path) -> None:
        self.root: Final = Path(root)

    def path(self, version: int) -> Path:
        """Where that version is, or will be."""
        if version < 0:
            raise ConfigError(f"policy versions count from 0, not {version}")
        return self.root / f"policy-{version:04d}"

    def versions(self) -> list[int]:
        """The versions that are on disk, oldest first.

        A directory without `config.json` is the rest of a save that never ended.
        """
        if not self.root.is_dir():
            return []
        found = (_NAME.fullmatch(folder.name) for folder in self.root.iterdir())
        return sorted(
            int(match.group(1))
            for match in found
            if match and (self.root / match.group() / "config.json").is_file()
        )

    def newest(self) -> tuple[int, Path] | None:
        """The newest version and its directory, to go on from after a crash."""
        versions = self.versions()
        return (versions[-1], self.path(versions[-1])) if versions else None

    def prune(self, keep: int, *, protect: Iterable[int] = ()) -> list[int]:
        """Delete all but the newest `keep` versions and those protected; gives what went.

        Blocks; protect what is served, what a roll-back may need, and reference policies.

        Raises:
            ConfigError: `keep` is below 1.
            StorageFailed: a directory cannot be deleted.
        """
        if keep < 1:
            raise ConfigError(f"keep must be at least 1 policy, not {keep}")
        protected = set(protect)
        gone = [version for version in self.versions()[:-keep] if version not in protected]
        for version in gone:
            folder = self.path(version)
            try:
                # The name goes first: a crash in the middle leaves no half policy behind.
                doomed = folder.with_name(f".{folder.name}.deleted")
                folder.rename(doomed)
                shutil.rmtree(doomed)
            except OSError as error:
                raise storage_error(error, folder) from error
        return gone
