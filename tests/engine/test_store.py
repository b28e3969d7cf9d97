"""Runs and waves: exact round trips, sealed for good, readable by anyone, refused when damaged."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from rollwave.engine.disk import Disk
from rollwave.engine.errors import (
    BadSample,
    FaultKind,
    MessageError,
    NotARun,
    RunLocked,
    StorageFailed,
    StoreError,
)
from rollwave.engine.store import Store
from rollwave.engine.trajectory import (
    ChatMessage,
    Fault,
    Outcome,
    Trajectory,
    Turn,
)


def sample(index: int = 0, **changes: object) -> Trajectory:
    base = Trajectory(
        id=f"w0/maze_{index}/0",
        env="maze-v1",
        task_id=f"maze_{index}",
        split="train",
        wave=0,
        attempt=0,
        seed=index,
        outcome=Outcome.SUCCESS,
        reward=1.0,
        prompt=(ChatMessage("system", "play"), ChatMessage("assistant", "OK", False)),
        turns=(Turn("go", "up ↑", "up", 1.0, start=1, end=3),),
        token_ids=bytes(range(16)),
        loss_mask=b"\0\1\1\0",
        logprobs=bytes(16),
        versions=(2, 5),
    )
    return msgspec.structs.replace(base, **changes)


FAULT = sample(9, outcome=Outcome.FAULT, reward=None, fault=Fault(FaultKind.BACKEND, "gone", 3))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "run", settings={"seed": "7"})


class FailingDisk(Disk):
    """Fails at the named operation from the n-th call on; n = 0 is healthy."""

    def __init__(self, operation: str = "", number: int = errno.ENOSPC) -> None:
        self.operation = operation
        self.number = number

    def _pass(self, operation: str) -> None:
        if operation == self.operation:
            raise OSError(self.number, "injected")

    def open(self, path: Path) -> int:
        self._pass("open")
        return super().open(path)

    def write(self, descriptor: int, data: bytes | memoryview, offset: int) -> None:
        if self.operation == "write":
            super().write(descriptor, data[: len(data) // 2], offset)
        self._pass("write")
        super().write(descriptor, data, offset)

    def sync(self, descriptor: int) -> None:
        self._pass("sync")
        super().sync(descriptor)

    def sync_directory(self, path: Path) -> None:
        self._pass("sync_directory")
        super().sync_directory(path)


# ---- waves: sealed once --------------------------------------------------------------


def test_sealing_the_same_again_gives_the_wave_that_is_there(store: Store) -> None:
    info = store.seal(0, 1, [sample()])
    before = info.path.stat()
    assert store.seal(0, 1, [sample()]) == info
    assert info.path.stat() == before


@pytest.mark.parametrize(
    ("version", "content"), [(1, []), (2, [sample()]), (1, [sample(1)]), (1, [sample(), sample()])]
)
def test_a_sealed_wave_never_changes(store: Store, version: int, content: list[Trajectory]) -> None:
    info = store.seal(0, 1, [sample()])
    before = info.path.read_bytes()
    with pytest.raises(StoreError, match="waves never change"):
        store.seal(0, version, content)
    assert info.path.read_bytes() == before


@pytest.mark.parametrize("operation", ["open", "write", "sync"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_a_failed_seal_leaves_nothing_behind_and_can_be_repeated(
    store: Store, operation: str, number: int
) -> None:
    store._disk = FailingDisk(operation, number)
    hint = {errno.ENOSPC: "free some space", errno.EIO: "check the disk"}.get(number, "permissions")
    with pytest.raises(StorageFailed, match=rf"wave-0000\.parquet.*{hint}"):
        store.seal(0, 0, [sample()])
    assert list((store.path / "waves").iterdir()) == []
    store._disk = Disk()
    store.seal(0, 0, [sample()])
    assert store.read(0).trajectories == (sample(),)


def test_a_seal_that_fails_after_the_rename_is_found_done(store: Store) -> None:
    store._disk = FailingDisk("sync_directory")
    for _ in range(2):
        with pytest.raises(StorageFailed):
            store.seal(0, 0, [sample()])
    store._disk = Disk()
    assert store.seal(0, 0, [sample()]).trajectories == 1


def test_the_leftover_of_a_killed_seal_is_swept_away(store: Store) -> None:
    leftover = store.path / "waves" / ".wave-0000.parquet.tmp"
    leftover.write_bytes(b"half")
    store.close()
    with Store.open(store.path) as again:
        assert not leftover.exists()
        assert again.waves() == []


def test_a_broken_record_is_refused_before_anything_is_written(store: Store) -> None:
    with pytest.raises(BadSample, match="outcome success with reward None"):
        store.seal(0, 0, [sample(), sample(reward=None)])
    with pytest.raises(
        MessageError, match=r"'w0/maze_0/0': a Trajectory cannot be encoded.*surrogates"
    ):
        store.seal(0, 0, [sample(final_observation="\ud800")])
    with pytest.raises(StoreError, match="does not fit its columns"):
        store.seal(0, 0, [sample(seed=2**64 - 1)])
    assert store.waves() == []


def test_a_faulted_trajectory_is_kept_with_its_fault_and_without_a_reward(store: Store) -> None:
    store.seal(0, 0, [FAULT])
    (back,) = store.read(0).trajectories
    assert back == FAULT
    assert back.reward is None


# ---- the directory -------------------------------------------------------------------


def test_a_run_keeps_the_settings_it_was_created_with(tmp_path: Path) -> None:
    with Store.open(tmp_path / "a" / "b", settings={"seed": "7"}) as first:
        assert dict(first.settings) == {"seed": "7"}
        assert first.created.endswith("+00:00")
        assert first.journal_path.parent == first.path
    with Store.open(tmp_path / "a" / "b", settings={"seed": "8"}) as second:
        assert dict(second.settings) == {"seed": "7"}
        assert second.created == first.created


def test_an_empty_directory_becomes_a_run(tmp_path: Path) -> None:
    Store.open(tmp_path).close()
    Store.open(tmp_path).close()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["lock", "run.json", "waves"]


def test_a_creation_that_was_killed_is_gone_over_again(tmp_path: Path) -> None:
    (tmp_path / "lock").touch()
    (tmp_path / ".run.json.tmp").write_text("{")
    with Store.open(tmp_path, settings={"a": "b"}) as store:
        assert dict(store.settings) == {"a": "b"}


def test_a_directory_of_something_else_is_refused_untouched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(NotARun, match=r"holds other files \(thesis\.tex\).*new --out"):
        Store.open(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(NotARun, match=r"is a file.*another --out"):
        Store.open(tmp_path / "thesis.tex")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("", "truncated"),
        ("{}", "missing required field"),
        ("[1]", "Expected `object`"),
        ('{"format": "1", "created": "", "settings": {}}', "Expected `int`"),
        ("\ud800".encode("utf-8", "surrogatepass"), "run.json"),
    ],
)
def test_a_damaged_run_file_is_named(tmp_path: Path, content: str | bytes, text: str) -> None:
    raw = content if isinstance(content, bytes) else content.encode()
    (tmp_path / "run.json").write_bytes(raw)
    for exclusive in (True, False):
        with pytest.raises(NotARun, match=r"run\.json") as caught:
            Store.open(tmp_path, exclusive=exclusive)
        assert text in str(caught.value)


def test_a_run_of_another_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"format": 99, "created": "", "settings": {}}')
    with pytest.raises(NotARun, match="has format 99, this version of Rollwave reads 1"):
        Store.open(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.json"]  # nothing was written


def test_a_second_writer_is_refused_and_told_who_writes(store: Store) -> None:
    with pytest.raises(RunLocked, match=f"written by process {os.getpid()}"):
        Store.open(store.path)
    store.close()
    store.close()
    Store.open(store.path).close()


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    code = (
        "import sys, time; from rollwave.engine.store import Store; "
        f"store = Store.open({str(tmp_path / 'run')!r}); print('open', flush=True); "
        "sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"
        with pytest.raises(RunLocked, match=f"written by process {process.pid}"):
            Store.open(tmp_path / "run")
        process.kill()
        process.wait()
        Store.open(tmp_path / "run").close()


def test_readers_need_no_lock_and_create_nothing(store: Store, tmp_path: Path) -> None:
    store.seal(0, 0, [sample()])
    reader = Store.open(store.path, exclusive=False)
    assert reader.read(0).trajectories == (sample(),)
    with pytest.raises(StoreError, match="not open for writing"):
        reader.seal(1, 0, [])
    reader.close()
    with pytest.raises(NotARun, match=r"no run\.json"):
        Store.open(tmp_path / "absent", exclusive=False)
    assert not (tmp_path / "absent").exists()


def test_a_closed_store_does_not_write(store: Store) -> None:
    store.close()
    with pytest.raises(StoreError, match="not open for writing"):
        store.seal(0, 0, [])


@pytest.mark.parametrize("operation", ["open", "write", "sync", "sync_directory"])
def test_a_run_that_cannot_be_created_says_so_and_holds_no_lock(
    tmp_path: Path, operation: str
) -> None:
    with pytest.raises(StorageFailed, match=r"cannot write .*run"):
        Store.open(tmp_path / "run", disk=FailingDisk(operation, errno.EROFS))
    Store.open(tmp_path / "run").close()


def test_opening_a_store_does_not_load_pyarrow(tmp_path: Path) -> None:
    code = (
        "import sys; from rollwave.engine.store import Store; "
        f"Store.open({str(tmp_path / 'run')!r}).close(); sys.exit('pyarrow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
