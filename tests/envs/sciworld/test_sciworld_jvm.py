"""The Java process: what comes back is what was sent, and it dies as it should."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rollwave.engine.errors import (
    ConfigError,
    EnvironmentFault,
    EnvironmentLost,
    MissingDependency,
)
from rollwave.envs.registry import resolve
from rollwave.envs.sciworld import jvm as subject
from rollwave.envs.sciworld.gateway import Call, Item, New, Ref, Static
from rollwave.envs.sciworld.jvm import Jvm, find_java, java_version, package
from rollwave.envs.sciworld.pool import Simulators

needs_java = [
    pytest.mark.skipif(find_spec("scienceworld") is None, reason="scienceworld is not installed"),
    pytest.mark.skipif(shutil.which("java") is None, reason="there is no java on the PATH"),
]
FORKS = """
import os, sys
from pathlib import Path
from rollwave.engine.errors import EnvironmentLost
from rollwave.envs.sciworld.gateway import Static
from rollwave.envs.sciworld.jvm import Jvm

def held():
    files = set()
    for fd in os.listdir("/proc/self/fd"):
        try:
            files.add(os.readlink(f"/proc/self/fd/{fd}"))
        except OSError:
            pass
    return files

before = held()
jvm = Jvm(heap_mib=128)
ours = {file for file in held() - before if file.startswith(("socket", "pipe"))}
assert len(ours) == 3, ours
child = os.fork()
if child == 0:
    assert not ours & held()
    try:
        jvm.gateway.call(Static("java.lang.Math"), "max", 1, 2)
    except EnvironmentLost:
        print("child", flush=True)
    jvm.close()
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
assert jvm.gateway.call(Static("java.lang.Math"), "max", 1, 2) == 2
print("parent")
"""
BUILDER = "java.lang.StringBuilder"


@pytest.fixture(scope="module")
def shared() -> Iterator[Jvm]:
    jvm = Jvm(heap_mib=128)
    yield jvm
    jvm.close()


def descriptors() -> set[str]:
    found = set()
    for fd in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # the directory that is being read
            found.add(f"{fd.name} {fd.readlink()}")
    return found


def alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def wait_dead(pid: int) -> None:
    fd = os.pidfd_open(pid)
    try:
        import select

        assert select.select([fd], [], [], 30)[0], f"{pid} lives on"
    finally:
        os.close(fd)


def put_java(monkeypatch: pytest.MonkeyPatch, home: Path, script: str) -> None:
    java = home / "bin" / "java"
    java.parent.mkdir()
    java.write_text(f"#!/bin/sh\n{script}\n")
    java.chmod(0o755)
    monkeypatch.setenv("JAVA_HOME", str(home))


# --- what is missing ----------------------------------------------------------------


def test_no_java_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    session = Simulators().open()
    with pytest.raises(MissingDependency, match="default-jre-headless"):
        session.load("boil", 0)
    with pytest.raises(MissingDependency, match="JAVA_HOME"):
        java_version()


def test_the_java_of_java_home_comes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    put_java(monkeypatch, tmp_path, "echo 'no such option' >&2; exit 3")
    assert find_java() == str(tmp_path / "bin" / "java")
    with pytest.raises(MissingDependency, match="does not run: no such option"):
        java_version()


@pytest.mark.skipif(find_spec("scienceworld") is None, reason="scienceworld is not installed")
@pytest.mark.parametrize(
    ("script", "text"),
    [
        ("echo cannot reserve memory; exit 1", "does not start: cannot reserve memory"),
        ("exit 1", "ended without a word"),
        ("exec sleep 60", "within 0.2 s"),
    ],
)
def test_a_java_that_does_not_start_is_a_fault(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, text: str
) -> None:
    put_java(monkeypatch, tmp_path, script)
    before = descriptors()
    seconds = 0.2 if "sleep" in script else 30.0
    with pytest.raises(EnvironmentFault) as caught:
        Jvm(heap_mib=128, start_seconds=seconds)
    assert text in str(caught.value)
    assert descriptors() == before


@pytest.mark.skipif(find_spec("scienceworld") is None, reason="scienceworld is not installed")
def test_a_java_that_does_not_start_is_ended_with_what_it_started(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    put_java(monkeypatch, tmp_path, 'sleep 600 & echo "child $!"; wait')
    times = iter([0.0, 0.0, 1000.0])  # it is late once it has said something
    monkeypatch.setattr(subject, "time", SimpleNamespace(monotonic=lambda: next(times)))
    with pytest.raises(EnvironmentFault, match=r"within 60 s; it said: child \d+$") as caught:
        Jvm(heap_mib=128)
    with suppress(ProcessLookupError):
        wait_dead(int(str(caught.value).rpartition(" ")[2]))


def test_what_is_missing_is_said_before_the_first_episode(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    needs = resolve("sciworld-v1").needs
    assert needs is not None
    put_java(monkeypatch, tmp_path, "exit 1")
    with monkeypatch.context() as patch:
        patch.setattr(subject.importlib.util, "find_spec", lambda name: None)
        with pytest.raises(MissingDependency, match=r"rollwave\[sciworld\]"):
            needs()
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME")
    with pytest.raises(MissingDependency, match="default-jre-headless"):
        needs()


def test_the_package_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependency, match=r"rollwave\[sciworld\]"):
        package()


@pytest.mark.parametrize(("heap", "live"), [(127, 1), (128, 0)])
def test_too_little_is_refused(heap: int, live: int) -> None:
    with pytest.raises(ConfigError, match="128 MiB"):
        Simulators(heap_mib=heap, live=live)


# --- calls --------------------------------------------------------------------------


@pytest.mark.usefixtures("shared")
class TestCalls:
    pytestmark = needs_java

    @settings(max_examples=60, deadline=None)
    @given(
        texts=st.lists(
            st.text()
            | st.sampled_from(
                ["", "\n", "\\n", "\\\\n\n", "e\n", "x\ne\nc\nt\n", "\r\n", "\0", "\ud800", "é😀\\"]
            ),
            max_size=6,
        )
    )
    def test_any_text_is_one_argument(self, shared: Jvm, texts: list[str]) -> None:
        gateway = shared.gateway
        (built,) = gateway.calls(New(BUILDER))
        gateway.calls(*[Call(built, "append", text) for text in texts])
        found, length = gateway.calls(Call(built, "toString"), Call(built, "length"))
        gateway.drop(built)
        whole = "".join(text.encode("utf-8", "replace").decode() for text in texts)
        assert found == whole
        assert length == len(whole.encode("utf-16-le")) // 2

    def test_numbers_arrays_and_nothing(self, shared: Jvm) -> None:
        gateway = shared.gateway
        assert gateway.call(Static("java.lang.Math"), "max", 3, 4) == 4
        assert gateway.call(Static("java.lang.Double"), "parseDouble", "-4e9") == -4e9
        assert gateway.call(Static("java.lang.Boolean"), "parseBoolean", "True") is True
        (made,) = gateway.calls(New("java.util.ArrayList"))
        assert gateway.call(made, "add", None) is True
        assert gateway.call(made, "get", 0) is None
        assert gateway.call(made, "clear") is None
        array = gateway.call(Static("java.lang.Thread$State"), "values")
        assert gateway.calls(Item(array), Item(array, 0))[0] == 6
        with pytest.raises(TypeError, match="no argument"):
            gateway.call(made, "add", 1.5)

    def test_what_raises_leaves_the_rest_in_order(self, shared: Jvm) -> None:
        gateway = shared.gateway
        (built,) = gateway.calls(New(BUILDER, "ab"))
        for call, text in [
            (Call(built, "charAt", 9), "StringIndexOutOfBounds"),
            (Call(built, "nothing"), "does not exist"),
            (Call(Ref("o999999"), "toString"), "does not exist"),
        ]:
            with pytest.raises(EnvironmentFault, match=text) as caught:
                gateway.calls(call, Call(built, "length"))
            assert "\n" not in str(caught.value)
            assert gateway.call(built, "toString") == "ab"

    def test_what_is_dropped_is_gone(self, shared: Jvm) -> None:
        gateway = shared.gateway
        (built,) = gateway.calls(New(BUILDER, "ab"))
        gateway.drop(built)
        gateway.call(Static("java.lang.Math"), "max", 1, 2)
        with pytest.raises(EnvironmentFault, match="does not exist"):
            gateway.call(built, "length")

    def test_of_a_batch_that_faults_nothing_is_kept(self, shared: Jvm) -> None:
        gateway = shared.gateway

        def kept() -> int:
            java = gateway.call(Ref("GATEWAY_SERVER"), "getGateway")
            bindings = gateway.call(java, "getBindings")
            gateway.drop(java, bindings)
            gateway.call(Static("java.lang.Math"), "max", 1, 2)
            java = gateway.call(Ref("GATEWAY_SERVER"), "getGateway")
            bindings = gateway.call(java, "getBindings")
            count = gateway.call(bindings, "size")
            gateway.drop(java, bindings)
            return int(count)

        wrong = Call(Static("java.lang.Integer"), "parseInt", "x")
        before = kept()
        for _ in range(3):
            with pytest.raises(EnvironmentFault, match="NumberFormat"):
                gateway.calls(New(BUILDER), wrong, New(BUILDER), wrong)
        assert kept() == before

    def test_nobody_is_answered_without_the_token(self, shared: Jvm) -> None:
        import socket

        gateway = shared.gateway
        with socket.create_connection(gateway._socket.getpeername(), timeout=30) as stranger:
            stranger.sendall(b"c\nz:java.lang.Math\nmax\ni1\ni2\ne\n")
            answer = stranger.recv(1000)
        assert b"2" not in answer
        assert gateway.call(Static("java.lang.Math"), "max", 1, 2) == 2


# --- its end ------------------------------------------------------------------------


@pytest.mark.usefixtures("shared")
class TestEnd:
    pytestmark = needs_java

    def test_killed_it_is_lost_and_leaves_nothing(self) -> None:
        before = descriptors()
        jvm = Jvm(heap_mib=128)
        os.kill(jvm.pid, signal.SIGKILL)
        with pytest.raises(EnvironmentLost, match="ended with code -9"):
            jvm.gateway.call(Static("java.lang.Math"), "max", 1, 2)
        with pytest.raises(EnvironmentLost):
            jvm.gateway.call(Static("java.lang.Math"), "max", 1, 2)
        assert not alive(jvm.pid)
        assert descriptors() == before

    def test_out_of_memory_it_ends_and_says_so(self) -> None:
        jvm = Jvm(heap_mib=128)
        (made,) = jvm.gateway.calls(New("java.util.ArrayList"))
        with pytest.raises(EnvironmentLost, match="OutOfMemoryError"):
            jvm.gateway.call(made, "ensureCapacity", 100_000_000)
        assert not alive(jvm.pid)

    def test_an_answer_that_is_late_ends_it(self) -> None:
        before = descriptors()
        jvm = Jvm(heap_mib=128)
        jvm.gateway._socket.settimeout(0.1)
        with pytest.raises(EnvironmentLost, match="did not answer in time"):
            jvm.gateway.call(Static("java.lang.Thread"), "sleep", 60_000)
        assert not alive(jvm.pid)
        assert descriptors() == before

    def test_an_interrupted_call_leaves_no_answer_to_the_next(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        jvm = Jvm(heap_mib=128)

        def interrupted() -> str:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(jvm.gateway, "_read", interrupted)
            with pytest.raises(KeyboardInterrupt):
                jvm.gateway.call(Static("java.lang.Math"), "max", 1, 2)
        with pytest.raises(EnvironmentLost):
            jvm.gateway.call(Static("java.lang.Math"), "max", 3, 4)
        assert not alive(jvm.pid)

    def test_what_it_prints_does_not_stop_it(self) -> None:
        jvm = Jvm(heap_mib=128)
        gateway = jvm.gateway
        kind = gateway.call(Static("java.lang.Class"), "forName", "java.lang.System")
        field = gateway.call(kind, "getField", "err")
        printer = gateway.call(field, "get", None)
        for _ in range(20):
            gateway.call(printer, "println", "x" * 10_000)
        jvm.close()

    def test_a_forked_child_holds_nothing_of_it_and_cannot_end_it(self) -> None:
        done = subprocess.run(
            [sys.executable, "-c", FORKS], capture_output=True, text=True, check=False, timeout=120
        )
        assert (done.returncode, done.stdout) == (0, "child\nparent\n"), done.stderr

    def test_forgotten_it_ends(self) -> None:
        pid = Jvm(heap_mib=128).pid
        assert not alive(pid)

    def test_killed_python_takes_it_along(self) -> None:
        code = (
            "import os, signal; from rollwave.envs.sciworld.jvm import Jvm; "
            "jvm = Jvm(heap_mib=128); print(jvm.pid, flush=True); "
            "os.kill(os.getpid(), signal.SIGKILL)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False
        )
        assert done.returncode == -signal.SIGKILL, done.stderr
        with suppress(ProcessLookupError):
            wait_dead(int(done.stdout))

    def test_what_java_says_first_is_passed_over(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("JAVA_TOOL_OPTIONS", "-Dsome.setting=1")  # it says that it saw it
        jvm = Jvm(heap_mib=128)
        assert jvm.gateway.call(Static("java.lang.System"), "getProperty", "some.setting") == "1"
        jvm.close()

    def test_no_file_is_left_in_temp(self, shared: Jvm) -> None:
        assert alive(shared.pid)
        assert not list(Path("/tmp").glob(f"hsperfdata_*/{shared.pid}"))
