"""Runs and waves: exact round trips, sealed for good, readable by anyone, refused when damaged."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rollwave.engine.codec import unpack_floats, unpack_tokens
from rollwave.engine.columns import schema
from rollwave.engine.disk import Disk
from rollwave.engine.errors import (
    BadSample,
    FaultKind,
    MessageError,
    NotARun,
    RunLocked,
    StorageFailed,
    StoreError,
    WaveCorrupt,
)
from rollwave.engine.store import Store, WaveInfo, read_wave, scan_wave
from rollwave.engine.strategies import trajectories
from rollwave.engine.trajectory import (
    ChatMessage,
    Fault,
    Outcome,
    Trajectory,
    Turn,
    count_outcomes,
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


# ---- waves: what comes back ----------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.lists(trajectories(), max_size=5), st.integers(0, 99), st.integers(0, 2**40))
def test_what_is_sealed_is_read_back_exactly(
    drawn: list[Trajectory], number: int, version: int
) -> None:
    with TemporaryDirectory() as folder, Store.open(folder) as store:
        info = store.seal(number, version, drawn)
        wave = store.read(number)
        assert wave.trajectories == tuple(drawn)
        assert (wave.number, wave.policy_version, wave.digest) == (number, version, info.digest)
        assert store.waves() == [info]
        assert info.trajectories == len(drawn)
        assert info.outcomes == count_outcomes(drawn)


def test_a_wave_of_several_row_groups_keeps_its_order(store: Store) -> None:
    drawn = [sample(index) for index in range(600)]
    info = store.seal(0, 0, drawn)
    assert store.read(0).trajectories == tuple(drawn)
    assert pq.ParquetFile(info.path).num_row_groups == 3
    assert [table.num_rows for table in scan_wave(info.path)] == [256, 256, 88]


def test_rewards_given_as_integers_and_lists_given_for_tuples_seal_the_same(store: Store) -> None:
    loose = sample(reward=1, prompt=list(sample().prompt), versions=[2, 5])
    assert store.seal(0, 0, [loose]).digest == store.seal(0, 0, [sample()]).digest
    assert store.read(0).trajectories == (sample(),)


def test_the_hash_covers_number_version_order_and_content(store: Store) -> None:
    first, second = sample(0), sample(1)
    digests = [
        store.seal(0, 0, [first, second]).digest,
        store.seal(1, 0, [first, second]).digest,
        store.seal(2, 0, [second, first]).digest,
        store.seal(3, 1, [first, second]).digest,
        store.seal(4, 0, [first]).digest,
        store.seal(5, 0, [first, msgspec.structs.replace(second, seconds=1e-9)]).digest,
    ]
    assert len(set(digests)) == len(digests)


# ---- waves: readable without our code ------------------------------------------------


def test_pyarrow_alone_reads_the_columns(store: Store) -> None:
    path = store.seal(3, 4, [sample(), FAULT]).path
    table = pq.read_table(path)
    types = {field.name: str(field.type) for field in table.schema}
    assert types["token_ids"] == "list<element: uint32 not null>"
    assert types["loss_mask"] == "list<element: uint8 not null>"
    assert types["logprobs"] == "list<element: float not null>"
    assert (types["reward"], types["outcome"]) == ("double", "string")
    row, faulted = table.to_pylist()
    assert row["token_ids"] == list(unpack_tokens(sample().token_ids))
    assert row["logprobs"] == list(unpack_floats(sample().logprobs))
    assert row["loss_mask"] == [0, 1, 1, 0]
    assert row["prompt"][1] == {"role": "assistant", "text": "OK", "loss": False}
    assert row["turns"][0] == {
        **msgspec.structs.asdict(sample().turns[0]),
        "finish": "scripted",
    }
    assert (row["versions_oldest"], row["versions_newest"]) == (2, 5)
    assert (row["outcome"], row["reward"], row["fault"]) == ("success", 1.0, None)
    assert (faulted["outcome"], faulted["reward"]) == ("fault", None)
    assert faulted["fault"] == {"kind": "backend", "text": "gone", "turn": 3}


def test_the_metadata_says_what_the_wave_is(store: Store) -> None:
    info = store.seal(3, 4, [sample(), FAULT])
    metadata = msgspec.json.decode(pq.read_schema(info.path).metadata[b"rollwave"])
    assert metadata == {
        "format": 1,
        "number": 3,
        "policy_version": 4,
        "digest": info.digest,
        "outcomes": info.outcomes,
    }


def test_every_field_of_a_record_has_a_column() -> None:
    names = set(schema().names)
    assert {"versions_oldest", "versions_newest"} <= names
    assert set(Trajectory.__struct_fields__) - names == {"versions"}
    for column, record in (("turns", Turn), ("prompt", ChatMessage)):
        kind = schema().field(column).type.value_type
        assert [field.name for field in kind] == list(record.__struct_fields__)


def test_a_changed_record_needs_a_new_format() -> None:
    """Waves that exist are hashed over these fields. If this fails, raise `wavefile.FORMAT`."""
    records = (Trajectory, Turn, ChatMessage, Fault)
    fields = [f"{record.__name__}: {' '.join(record.__struct_fields__)}" for record in records]
    assert "\n".join(fields) == FORMAT_1


FORMAT_1 = """\
Trajectory: id env task_id split wave attempt seed outcome reward terminated truncation fault \
prompt turns final_observation token_ids loss_mask logprobs policy versions temperature \
started seconds
Turn: observation completion action reward start end policy_version finish format_error \
generate_seconds step_seconds
ChatMessage: role text loss
Fault: kind text turn"""


def test_a_scan_reads_only_the_columns_it_is_asked_for(store: Store) -> None:
    path = store.seal(0, 0, [sample(index) for index in range(3)]).path
    (table,) = scan_wave(path, ["task_id", "turns.list.element.action"])
    assert table.column_names == ["task_id", "turns"]
    assert table.column("turns").to_pylist() == [[{"action": "up"}]] * 3
    (table,) = scan_wave(path, ["turns"])
    assert table.column("turns").to_pylist()[0][0]["observation"] == "go"
    with pytest.raises(StoreError, match=r"no column 'rewards'; it has id, env.*reward"):
        next(scan_wave(path, ["rewards"]))


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
    with pytest.raises(StorageFailed, match=r"wave-0000\.parquet.*free some space"):
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


# ---- waves: damage -------------------------------------------------------------------


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> tuple[WaveInfo, bytes]:
    with Store.open(tmp_path_factory.mktemp("sealed") / "run") as store:
        info = store.seal(0, 5, [sample(0), FAULT, sample(2)])
    return info, info.path.read_bytes()


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_flip_or_cut_is_noticed_or_harmless(
    sealed: tuple[WaveInfo, bytes], data: st.DataObject
) -> None:
    info, good = sealed
    raw = bytearray(good)
    where = data.draw(st.integers(0, len(raw) - 1), "where")
    if data.draw(st.booleans(), "cut"):
        del raw[where:]
    else:
        raw[where] ^= data.draw(st.integers(1, 255), "flip")
    with TemporaryDirectory() as folder:
        path = Path(folder) / "wave-0000.parquet"
        path.write_bytes(raw)
        try:
            wave = read_wave(path)
        except (WaveCorrupt, NotARun) as error:
            text = str(error)
            assert str(path) in text
            return
    assert wave.trajectories == (sample(0), FAULT, sample(2))
    assert (wave.number, wave.policy_version, wave.digest) == (0, 5, info.digest)


def rewritten(info: WaveInfo, **changes: object) -> None:
    """Write a wave file of sound Parquet whose metadata was tampered with."""
    table = pq.read_table(info.path)
    metadata = msgspec.json.decode(table.schema.metadata[b"rollwave"])
    encoded = msgspec.json.encode({**metadata, **changes})
    pq.write_table(table.replace_schema_metadata({b"rollwave": encoded}), info.path)


@pytest.mark.parametrize(
    "changes",
    [{"number": 1}, {"policy_version": 8}, {"digest": "0" * 32}, {"outcomes": {"success": 2}}],
)
def test_metadata_that_does_not_fit_the_content_is_corrupt(
    store: Store, changes: dict[str, object]
) -> None:
    info = store.seal(0, 0, [sample(), FAULT])
    rewritten(info)
    assert store.read(0).digest == info.digest
    rewritten(info, **changes)
    with pytest.raises(WaveCorrupt, match=r"wave-0000\.parquet is damaged.*hash.*restore"):
        store.read(0)


def test_sound_parquet_with_other_content_is_corrupt(store: Store) -> None:
    info = store.seal(0, 0, [sample()])
    table = pq.read_table(info.path)
    rewards = pa.array([0.5], pa.float64())
    index = table.schema.get_field_index("reward")
    pq.write_table(table.set_column(index, "reward", rewards), info.path)
    with pytest.raises(WaveCorrupt):
        store.read(0)
    pq.write_table(table.drop_columns("reward"), info.path)
    with pytest.raises(WaveCorrupt, match="reward"):
        store.read(0)


def test_a_file_that_is_no_wave_is_named(store: Store) -> None:
    path = store.path / "waves" / "wave-0000.parquet"
    pq.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(WaveCorrupt, match="no readable rollwave entry"):
        store.read(0)
    with pytest.raises(WaveCorrupt, match="no readable rollwave entry"):
        store.waves()
    path.write_text("not parquet")
    with pytest.raises(WaveCorrupt, match=r"wave-0000\.parquet is damaged"):
        next(scan_wave(path))
    with pytest.raises(StoreError, match=r"cannot read wave .*wave-0001"):
        store.read(1)


def test_a_wave_of_another_format_is_refused_by_version(store: Store) -> None:
    rewritten(store.seal(0, 0, [sample()]), format=2)
    with pytest.raises(NotARun, match="has format 2, this version of Rollwave reads 1"):
        store.read(0)


def test_a_damaged_wave_does_not_hide_the_others(store: Store) -> None:
    store.seal(1, 0, [sample()])
    info = store.seal(2, 0, [sample()])
    info.path.write_bytes(info.path.read_bytes()[:-9])
    assert store.read(1).trajectories == (sample(),)
    with pytest.raises(WaveCorrupt):
        store.read(2)


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
