"""Every error that Rollwave raises, and the one boundary that classifies foreign ones.

    RollwaveError
    ├── ConfigError                the user's settings are wrong: the message names the key
    │   ├── UnknownEnvironment     no environment of that id; says the nearest one
    │   ├── TemplateError          a chat template breaks the prefix rule
    │   ├── MissingDependency      an extra is not installed; says which
    │   └── BadDataFile            a file of the user's is not what it should be; names the item
    ├── MessageError               bytes that are not the message they should be
    │   └── MessageTooLarge
    ├── ActorError
    │   ├── ActorDead              the actor stopped, it will not answer
    │   │   └── ActorRestarted     this incarnation died, the next one will: ask again
    │   ├── AskFailed              the actor answered with a failure
    │   ├── MailboxFull            `tell_nowait` on a full mailbox
    │   └── RestartLimitExceeded   too many restarts in the window: escalated
    ├── DeadlineExceeded           a stage outlived its deadline; names the stage
    ├── EnvironmentFault           an environment raised, hung or answered garbage
    │   ├── EnvironmentLost        the process that it ran in is gone; its actions can be replayed
    │   └── LawBroken              a check found that an environment breaks its contract
    ├── TooManyFaults              a wave had more faults than allowed: the world is broken
    ├── BackendError               the inference backend refused or failed one request
    │   ├── BackendDied            the whole backend is gone; its supervisor restarts it
    │   └── WeightSwapFailed       new weights could not be loaded
    ├── StoreError
    │   ├── JournalCorrupt         a record in the middle of the journal is damaged
    │   ├── WaveCorrupt            a sealed wave does not match its hash
    │   ├── NotARun                the directory is not a run of ours, or of another version
    │   ├── RunLocked              another process is writing to this run
    │   └── StorageFailed          the disk refused a write (full, read-only, ...)
    └── LearnerError
        ├── EmptyWave              nothing left to learn from, with the counts of what was dropped
        ├── BadSample              a trajectory that cannot be trained on as it is
        ├── EvaluationLeak         an evaluation task is among the training data
        └── CheckpointCorrupt      a training checkpoint is damaged, or not of this model

A fault is data, not a crash: `classify` turns any exception that escaped an
environment, a backend or our own code into a `Fault` that travels in a
trajectory. It is the only place where arbitrary exceptions are looked at, and
it is never used to hide cancellation.

Not here: retry rules (see `restart`) and exit codes (see the command line).
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from enum import StrEnum
from typing import Final

import trio


class RollwaveError(Exception):
    """Base of the tree. The text says what happened and what to do about it."""


class ConfigError(RollwaveError):
    """The user's settings are wrong. The text names the key and the accepted values."""


class UnknownEnvironment(ConfigError):
    """No environment is registered under that id."""


class TemplateError(ConfigError):
    """A chat template whose rendering of turn k is not a prefix of turn k+1."""


class MissingDependency(ConfigError):
    """An optional package is needed here. The text gives the extra that installs it."""


class BadDataFile(ConfigError):
    """A data file is missing, damaged or of another form. The text names the file and item."""


class MessageError(RollwaveError):
    """Bytes that do not decode as one of the messages their receiver accepts."""


class MessageTooLarge(MessageError):
    """A message above the size limit of its transport."""


class ActorError(RollwaveError):
    """Base of what can go wrong between two actors."""


class ActorDead(ActorError):
    """The actor has stopped: this message was not, and will not be, answered."""


class ActorRestarted(ActorDead):
    """The incarnation that held this message died and is being replaced: ask again."""


class AskFailed(ActorError):
    """The actor handled the message and answered with a failure.

    Unlike `ActorDead`, the actor is alive; asking again may fail the same way.
    """

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(f"{kind}: {text}" if kind else text)
        self.kind: Final = kind
        self.text: Final = text

    def __reduce__(self) -> tuple[type[AskFailed], tuple[str, str]]:
        # Exceptions pickle as their one text; this one is made from two.
        return type(self), (self.kind, self.text)


class MailboxFull(ActorError):
    """`tell_nowait` found no room. Use `tell`, which waits for it."""


class RestartLimitExceeded(ActorError):
    """A supervisor gave up: its children were restarted too often within the window."""


class DeadlineExceeded(RollwaveError):
    """A stage outlived its deadline. The text names the stage and the seconds."""


class EnvironmentFault(RollwaveError):
    """An environment raised, hung, or answered something that is not a step result."""


class EnvironmentLost(EnvironmentFault):
    """The process in which a session of an environment ran is gone, and the session with it.

    It is no answer of the world's: where replaying the same actions rebuilds the same
    state, the episode goes on in another process.
    """

    def __init__(self, text: str, *, blamed: bool = True) -> None:
        super().__init__(text)
        self.blamed: Final = blamed
        """It died in this session's own call; False if in another's."""


class LawBroken(EnvironmentFault):
    """A check found that an environment breaks a law of its contract. The text says how."""

    def __init__(self, text: str, *, unsound: bool = False) -> None:
        super().__init__(text)
        self.unsound: Final = unsound
        """One answer is at fault (an exception, garbage), whatever law was looked at."""


class TooManyFaults(RollwaveError):
    """A larger share of a wave's episodes are faults than is allowed; the campaign stops."""


class BackendError(RollwaveError):
    """The inference backend refused or failed this request; the backend itself is alive."""


class BackendDied(BackendError):
    """The whole backend is gone (its engine or thread died). The supervisor restarts it."""


class WeightSwapFailed(BackendError):
    """New weights could not be loaded. The backend must be restarted before it is used."""


class StoreError(RollwaveError):
    """Base of what can go wrong with a run directory."""


class JournalCorrupt(StoreError):
    """A record in the middle of the journal is damaged (a torn tail is not an error)."""


class WaveCorrupt(StoreError):
    """A sealed wave whose content does not match the hash it was sealed with."""


class NotARun(StoreError):
    """The directory is not a Rollwave run, or one of a version this build cannot read."""


class RunLocked(StoreError):
    """Another process holds this run directory."""


class StorageFailed(StoreError):
    """The operating system refused a write: disk full, read-only, or an I/O error."""


class LearnerError(RollwaveError):
    """Base of what can go wrong in an evolution step."""


class EmptyWave(LearnerError):
    """No usable trajectory is left. The text counts what was dropped, by reason."""


class BadSample(LearnerError):
    """A trajectory whose tokens, mask and log-probs do not fit together."""


class EvaluationLeak(LearnerError):
    """A task that is kept for evaluation turned up among training data. The text names it."""


class CheckpointCorrupt(LearnerError):
    """A training checkpoint whose files do not match the hashes they were saved with."""


class FaultKind(StrEnum):
    """Where a fault came from. Faults are counted by kind and never become a reward."""

    ENVIRONMENT = "environment"
    BACKEND = "backend"
    DEADLINE = "deadline"
    MESSAGE = "message"
    STORAGE = "storage"
    INTERNAL = "internal"


_NAMES: Final = frozenset(kind.value for kind in FaultKind)

_KINDS: Final[tuple[tuple[type[BaseException], FaultKind], ...]] = (
    (DeadlineExceeded, FaultKind.DEADLINE),
    (TimeoutError, FaultKind.DEADLINE),
    (trio.TooSlowError, FaultKind.DEADLINE),
    (EnvironmentFault, FaultKind.ENVIRONMENT),
    (BackendError, FaultKind.BACKEND),
    (ActorError, FaultKind.BACKEND),
    (MessageError, FaultKind.MESSAGE),
    (StoreError, FaultKind.STORAGE),
)


_SPACE: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FULL: Final = {errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO}


def classify(
    error: BaseException, unknown: FaultKind = FaultKind.INTERNAL
) -> tuple[FaultKind, str]:
    """Give the fault kind and a one-line description of any exception.

    An exception group is classified by its first leaf that is not a
    cancellation. A failed ask keeps the kind that the other actor gave it.
    Exceptions of no known class (sockets, HTTP, memory, a plain defect) are
    `unknown`: the caller knows whose code it called; `INTERNAL` means a defect of
    ours until shown otherwise.
    """
    leaves = list(_leaves(error))
    error = next((leaf for leaf in leaves if not isinstance(leaf, trio.Cancelled)), leaves[0])
    if isinstance(error, AskFailed) and error.kind in _NAMES:
        return FaultKind(error.kind), error.text
    text = f"{type(error).__name__}: {error}".splitlines()[0][:500]
    for base, kind in _KINDS:
        if isinstance(error, base):
            return kind, text
    if isinstance(error, OSError) and error.errno in _FULL:
        return FaultKind.STORAGE, text
    # httpx is looked at only where it is in use: importing it here costs 0.1 s.
    httpx = sys.modules.get("httpx")
    if httpx is not None and isinstance(error, httpx.TimeoutException):
        return FaultKind.DEADLINE, text
    return unknown, text


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


def storage_error(error: OSError, path: object) -> StorageFailed:
    """Wrap an `OSError` of a write into an error that names the file and the way out."""
    reason = error.strerror or str(error)
    if error.errno in _SPACE:
        hint = "free some space or choose another --out directory, then run the same command again"
    elif error.errno == errno.EIO:
        hint = "check the disk, then run the same command again"
    else:
        hint = "check the path and its permissions, or choose another --out directory"
    return StorageFailed(f"cannot write {path}: {reason}; {hint} (what was sealed is intact)")
