"""The disk writes all of it or raises, and replaces files whole."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from rollwave.engine.disk import Disk


def test_a_short_write_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: real(fd, data[:3], offset))
    disk = Disk()
    descriptor = disk.open(tmp_path / "file")
    disk.write(descriptor, b"0123456789", 2)
    disk.sync(descriptor)
    disk.truncate(descriptor, 11)
    disk.close(descriptor)
    assert (tmp_path / "file").read_bytes() == b"\0\x00012345678"


def test_replacing_is_whole_or_not_at_all(tmp_path: Path) -> None:
    class FullDisk(Disk):
        def sync(self, descriptor: int) -> None:
            raise OSError(errno.ENOSPC, "full")

    path = tmp_path / "file"
    Disk().replace(path, b"first version")
    with pytest.raises(OSError, match="full"):
        FullDisk().replace(path, b"second")
    assert path.read_bytes() == b"first version"
    Disk().replace(path, b"second")
    assert path.read_bytes() == b"second"
    assert os.listdir(tmp_path) == ["file"]


def test_a_longer_leftover_does_not_shine_through(tmp_path: Path) -> None:
    (tmp_path / ".file.tmp").write_bytes(b"a long leftover of a process that was killed")
    Disk().replace(tmp_path / "file", b"short")
    assert (tmp_path / "file").read_bytes() == b"short"


def test_a_descriptor_is_not_inherited_by_child_processes(tmp_path: Path) -> None:
    descriptor = Disk().open(tmp_path / "file")
    assert not os.get_inheritable(descriptor)
    Disk().close(descriptor)
