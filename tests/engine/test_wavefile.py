"""Wave files: exact round trips, readable by anyone, refused when damaged."""

from __future__ import annotations

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
from rollwave.engine.errors import (
    FaultKind,
    NotARun,
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
Trajectory: id env task_id split wave attempt seed outcome reward environment_seed terminated \
truncation fault prompt turns final_observation token_ids loss_mask logprobs policy versions \
temperature started seconds
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
