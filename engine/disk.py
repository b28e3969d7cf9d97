"""The few file operations that must not lie: write, make durable, replace, cut.

`Disk` is the one seam between the runtime and the file system's writes; a test
or a fault plan hands in a subclass that is full, read-only, slow or torn.

Invariant: each method either did all of it or raised the `OSError`; a short
write is continued, never returned.

Not here: which bytes are written (`journal`, `store`) and what an `OSError`
means to the user (`errors.storage_error`).
"""

from __future__ import annotations

import os
from pathlib import Path


class Disk:
    """The operating system's disk. Stateless; every method blocks."""

    def open(self, path: Path) -> int:
        """Open for reading and writing, creating the file; give the descriptor."""
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def write(self, descriptor: int, data: bytes | memoryview, offset: int) -> None:
        """Write all of `data` at `offset`."""
        rest = memoryview(data)
        while rest:
            written = os.pwrite(descriptor, rest, offset)
            offset += written
            rest = rest[written:]

    def sync(self, descriptor: int) -> None:
        """Return when everything written, and the file's length, would survive a power cut."""
        os.fdatasync(descriptor) if hasattr(os, "fdatasync") else os.fsync(descriptor)

    def truncate(self, descriptor: int, length: int) -> None:
        """Cut the file to `length` bytes."""
        os.ftruncate(descriptor, length)

    def close(self, descriptor: int) -> None:
        """Close the descriptor."""
        os.close(descriptor)

    def sync_directory(self, path: Path) -> None:
        """Make the entries of a directory durable: a new or renamed file is not, until then."""
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def replace(self, path: Path, data: bytes) -> None:
        """Give `path` this content, all of it or none, whatever dies in between.

        A temporary file beside it is written, made durable and renamed over it.
        When anything fails, `path` is as it was and the temporary file is gone.
        """
        temporary = path.with_name(f".{path.name}.tmp")
        try:
            descriptor = self.open(temporary)
            try:
                self.truncate(descriptor, 0)
                self.write(descriptor, data, 0)
                self.sync(descriptor)
            finally:
                self.close(descriptor)
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        self.sync_directory(path.parent)
