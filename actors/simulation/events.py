"""What happened in a simulation, and when: one digest, and the events as JSON lines if wanted.

    {"t": 0.0, "event": "admit", "episode": 0}
    {"t": 0.0, "event": "batch", "episode": 0, "turn": 0, "replica": 0, "size": 1}
    {"t": 1.2, "event": "turn", "episode": 0, "turn": 0}
    {"t": 1.2, "event": "end", "episode": 0, "outcome": "success", "turns": 1, "fault": ""}
    {"t": 3.0, "event": "actor", "kind": "restarting", "path": "inference"}

Invariants: the digest covers every event with its time, in order, and is the same whether
the events are written or not; it depends on no hash seed and no address.

Not here: telemetry of real runs (`engine.telemetry`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import msgspec
import trio

from ...engine.errors import storage_error
from ...engine.supervisor import LifecycleEvent

FIELDS: Final[Mapping[str, Sequence[str]]] = {
    "admit": ("episode",),
    "batch": ("episode", "turn", "replica", "size"),
    "turn": ("episode", "turn"),
    "end": ("episode", "outcome", "turns", "fault"),
    "actor": ("kind", "path"),
}
"""The fields of each kind of event, behind its time."""

_CHUNK: Final = 1 << 16


class Events:
    """The events of one simulation; a context manager, because of its file.

    Args:
        path: where the events are written; None = nowhere.

    Raises:
        StorageFailed: the file cannot be opened or written.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.count = 0
        self._hash = blake2b(digest_size=16)
        self._pack = msgspec.msgpack.Encoder().encode_into
        self._packed = bytearray()
        self._path = path
        self._json = msgspec.json.Encoder().encode_into
        self._lines = bytearray()
        try:
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("wb") if path is not None else None
        except OSError as error:
            assert path is not None
            raise storage_error(error, path) from error

    def __call__(self, kind: str, *values: str | int) -> None:
        """Note an event, now; its values are those that `FIELDS` names, in order."""
        self.count += 1
        time = trio.current_time()
        self._pack((time, kind, *values), self._packed, -1)
        if len(self._packed) > _CHUNK:
            self._digest()
        if self._file is not None:
            named = dict(zip(FIELDS[kind], values, strict=True))
            self._json({"t": time, "event": kind, **named}, self._lines, -1)
            self._lines += b"\n"
            if len(self._lines) > _CHUNK:
                self._write()

    def observe(self, event: LifecycleEvent) -> None:
        """Note what happened to an actor: the start of a session is its admission."""
        session = event.path.startswith("dispatcher/")
        if not session:
            self("actor", event.kind, event.path)
        elif event.kind == "spawned":
            self("admit", int(event.path.rsplit("/", 2)[1].rpartition("_")[2]))

    def digest(self) -> str:
        """One hash of the events so far: 32 hex digits."""
        self._digest()
        return self._hash.hexdigest()

    def _digest(self) -> None:
        self._hash.update(self._packed)
        self._packed.clear()

    def _write(self) -> None:
        assert self._file is not None
        assert self._path is not None
        try:
            self._file.write(self._lines)
        except OSError as error:
            raise storage_error(error, self._path) from error
        self._lines.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Write the rest and close the file."""
        if self._file is not None:
            with self._file:
                self._write()
