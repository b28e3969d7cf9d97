"""The error tree is as drawn, and every exception we may meet has its fault kind."""

from __future__ import annotations

import errno
import re

import httpx
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from rollwave.engine import errors
from rollwave.engine.errors import (
    ActorDead,
    AskFailed,
    BackendDied,
    BadSample,
    DeadlineExceeded,
    EnvironmentFault,
    FaultKind,
    MessageTooLarge,
    RollwaveError,
    StorageFailed,
    classify,
    storage_error,
)


def drawn_tree() -> dict[str, str]:
    """Parse the drawing at the top of the module: class name → parent's name."""
    assert errors.__doc__
    parents: dict[str, str] = {}
    branch: list[str] = []
    for line in errors.__doc__.splitlines():
        found = re.match(r"    ([│├└─ ]*)([A-Z]\w+)(?:\s|$)", line)
        if not found:
            continue
        depth = len(found[1]) // 4
        branch[depth:] = [found[2]]
        parents[found[2]] = branch[depth - 1] if depth else "Exception"
    return parents


def real_tree() -> dict[str, str]:
    return {
        name: value.__bases__[0].__name__
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, RollwaveError)
    }


def test_the_drawing_is_the_tree() -> None:
    assert drawn_tree() == real_tree()


def test_every_error_says_in_its_docstring_when_it_is_raised() -> None:
    for name in real_tree():
        assert getattr(errors, name).__doc__, name


def test_every_error_is_pickled_with_its_text() -> None:
    import pickle

    for name in real_tree():
        cls = getattr(errors, name)
        error = cls("backend", "no room") if cls is AskFailed else cls("no room")
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again)) == (cls, str(error))


CASES = [
    (DeadlineExceeded("turn took 30 s"), FaultKind.DEADLINE),
    (trio.TooSlowError(), FaultKind.DEADLINE),
    (TimeoutError("slow"), FaultKind.DEADLINE),
    (httpx.ReadTimeout("slow"), FaultKind.DEADLINE),
    (httpx.PoolTimeout("slow"), FaultKind.DEADLINE),
    (EnvironmentFault("raised"), FaultKind.ENVIRONMENT),
    (BackendDied("gone"), FaultKind.BACKEND),
    (ActorDead("gone"), FaultKind.BACKEND),
    (MessageTooLarge("9 GB"), FaultKind.MESSAGE),
    (StorageFailed("full"), FaultKind.STORAGE),
    (OSError(errno.ENOSPC, "No space left on device"), FaultKind.STORAGE),
    (OSError(errno.EROFS, "Read-only file system"), FaultKind.STORAGE),
]
UNKNOWN = [
    ValueError("a defect"),
    KeyError("a defect"),
    MemoryError(),
    ConnectionResetError("by peer"),
    FileNotFoundError(errno.ENOENT, "No such file"),
    httpx.ConnectError("refused"),
    httpx.RemoteProtocolError("garbage"),
    trio.BrokenResourceError(),
    trio.ClosedResourceError(),
    RecursionError("deep"),
    BadSample("tokens do not fit"),
]


def named(error: BaseException) -> str:
    return type(error).__name__


@pytest.mark.parametrize(("error", "kind"), CASES, ids=[named(error) for error, _ in CASES])
def test_known_errors_have_a_kind_of_their_own(error: Exception, kind: FaultKind) -> None:
    for unknown in FaultKind:
        assert classify(error, unknown)[0] is kind
    assert classify(error)[1].startswith(type(error).__name__)


@pytest.mark.parametrize("error", UNKNOWN, ids=named)
def test_other_errors_are_blamed_on_whose_code_was_called(error: Exception) -> None:
    assert classify(error)[0] is FaultKind.INTERNAL
    assert classify(error, FaultKind.ENVIRONMENT)[0] is FaultKind.ENVIRONMENT


@pytest.mark.parametrize(("error", "kind"), CASES, ids=[named(error) for error, _ in CASES])
def test_a_group_is_classified_by_its_first_leaf(error: Exception, kind: FaultKind) -> None:
    group = ExceptionGroup("tasks", [ExceptionGroup("inner", [error]), ValueError("later")])
    assert classify(group) == classify(error)
    assert classify(group)[0] is kind


async def test_a_cancellation_beside_the_error_is_passed_over() -> None:
    caught: list[BaseException] = []
    with trio.CancelScope() as scope:
        scope.cancel()
        try:
            await trio.lowlevel.checkpoint()
        except trio.Cancelled as cancelled:
            caught.append(cancelled)
            raise
    group = BaseExceptionGroup("tasks", [caught[0], EnvironmentFault("raised")])
    assert classify(group) == (FaultKind.ENVIRONMENT, "EnvironmentFault: raised")


@given(st.sampled_from(FaultKind), st.text(max_size=20))
def test_a_failed_ask_keeps_the_kind_it_was_given(kind: FaultKind, text: str) -> None:
    assert classify(AskFailed(kind.value, text)) == (kind, text)


def test_a_failed_ask_of_no_known_kind_is_the_backends() -> None:
    assert classify(AskFailed("", "odd"))[0] is FaultKind.BACKEND


@given(st.text())
def test_the_description_is_one_short_line(text: str) -> None:
    _, described = classify(ValueError(text))
    assert len(described.splitlines()) == 1
    assert len(described) <= 500


@pytest.mark.parametrize(
    ("number", "hint"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EROFS, "permissions, or choose another --out directory"),
        (errno.EACCES, "permissions"),
        (errno.EIO, "check the disk"),
        (errno.ENOENT, "check the path"),
    ],
)
def test_a_disk_error_names_the_file_and_the_way_out(number: int, hint: str) -> None:
    error = storage_error(OSError(number, "The reason"), "/runs/a/journal.msgpack")
    assert isinstance(error, StorageFailed)
    assert "/runs/a/journal.msgpack" in str(error)
    assert "The reason" in str(error)
    assert hint in str(error)
