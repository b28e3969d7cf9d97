"""The Java process that runs the `scienceworld` package's simulator.

    jvm = Jvm(heap_mib=1024)
    jvm.gateway.call(...)          see `gateway`
    jvm.close()

Invariants:

* its heap is capped; out of memory it ends, for the simulator would go on with half a step;
* it listens on the loopback interface only, and obeys nobody who does not know its token;
* it ends with this process, however that ends: its standard input is a pipe that nobody
  else holds, and it leaves when that closes. A Ctrl-C in the terminal is not for it;
* a forked child holds nothing of it, and cannot end it;
* what it prints is taken at each call and thrown away, but for the last words, which tell
  of its death; it leaves no file behind.

Not here: what is said to it (`gateway`, `machinery`), which sessions it holds (`pool`).
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import select
import shutil
import signal
import subprocess
import time
import weakref
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

from ...engine.errors import EnvironmentFault, MissingDependency
from .forks import leave_when_forked
from .gateway import Gateway

START_SECONDS: Final = 60.0
"""For Java to start. It takes under a second on an idle machine."""
CALL_SECONDS: Final = 50.0
"""For one answer; then the process is killed. The slowest gold path takes some seconds."""
_LAST_SECONDS: Final = 0.2
"""For one that broke the connection to end by itself, and say why."""
_REAP_SECONDS: Final = 5.0
_WORDS: Final = 4096
_READS: Final = 64
"""At most in a row: it may print faster than is read."""
_ADDRESS: Final = re.compile(rb"^(\d{1,5})\r?\n([A-Za-z0-9+/=]+)\r?\n", re.MULTILINE)
_QUIET: Final = (
    "-XX:+UseSerialGC",  # one thread that computes, and no more beside it
    "-XX:-UsePerfData",  # a file in /tmp for each process
    "-XX:ErrorFile=/dev/null",
    "-XX:+UnlockExperimentalVMOptions",
    "-XX:hashCode=2",  # see `machinery`: objects of one name are told in the order of a hash
    "-XX:+ExitOnOutOfMemoryError",
    "-Dfile.encoding=UTF-8",
    "-Duser.language=en",  # it folds case by the language of the machine
    "-Duser.country=US",
    "-Djava.awt.headless=true",
)


def find_java() -> str:
    """The program `java`: JAVA_HOME's, or the one on the path.

    Raises:
        MissingDependency: there is none; says what to install.
    """
    home = os.environ.get("JAVA_HOME")
    if home:
        found = shutil.which("java", path=str(Path(home) / "bin"))
        if found is not None:
            return found
    found = shutil.which("java")
    if found is None:
        raise MissingDependency(
            "ScienceWorld's simulator runs on Java, and there is no `java` here: install a Java "
            "runtime of version 11 or later (Debian and Ubuntu: apt-get install "
            "default-jre-headless), or set JAVA_HOME"
        )
    return found


def java_version() -> str:
    """What `java -version` says of itself.

    Raises:
        MissingDependency: there is no Java, or none that runs.
    """
    java = find_java()
    try:
        done = subprocess.run(  # noqa: S603 (no word of it is a user's)
            [java, "-version"],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=START_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MissingDependency(f"{java} does not run: {error}") from error
    said = done.stderr.strip().splitlines()
    if done.returncode != 0 or not said:
        raise MissingDependency(f"{java} does not run: {' | '.join(said)[:200]}")
    return said[0]


def package() -> tuple[Path, str]:
    """The folder of the `scienceworld` package, and its version.

    Raises:
        MissingDependency: it is not installed.
    """
    found = importlib.util.find_spec("scienceworld")
    if found is None or found.origin is None or importlib.util.find_spec("py4j") is None:
        raise MissingDependency(
            "ScienceWorld needs the scienceworld package: pip install 'rollwave[sciworld]'"
        )
    return Path(found.origin).parent, importlib.metadata.version("scienceworld")


def find_all() -> None:
    """Look for all that ScienceWorld needs, and start nothing.

    Raises:
        MissingDependency: no Java, or no `scienceworld`.
    """
    find_java()
    package()


class Jvm:
    """One Java process. Nothing in it is shared with another."""

    def __init__(
        self,
        *,
        heap_mib: int,
        start_seconds: float = START_SECONDS,
        call_seconds: float = CALL_SECONDS,
    ) -> None:
        """Start it, and wait until it answers.

        Raises:
            MissingDependency: no Java, or no `scienceworld`.
            EnvironmentFault: Java does not start; says what it said.
        """
        java = find_java()
        folder, self.version = package()
        from py4j.java_gateway import find_jar_path

        classpath = os.pathsep.join((find_jar_path(), str(folder / "scienceworld.jar")))
        command = [
            *(java, f"-Xmx{heap_mib}m", "-Xms32m", *_QUIET, "-classpath", classpath),
            *("py4j.GatewayServer", "--die-on-broken-pipe", "--enable-auth", "0"),
        ]
        self._popen: Final = subprocess.Popen(  # noqa: S603 (no word of it is a user's)
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=folder,  # it reads a table that lies there
            process_group=0,
            bufsize=0,  # no lock that a fork could find taken
        )
        self._end: Final = weakref.finalize(self, _end, self._popen)
        leave_when_forked(self)
        try:
            port, token = _handshake(self._popen, start_seconds)
            printed = _Printed(self._popen)
            self.gateway: Final = Gateway(
                port,
                token,
                lost=partial(_lost, self._popen, printed),
                drain=printed.drain,
                seconds=call_seconds,
            )
        except BaseException:
            self._end()
            raise
        self._hang_up: Final = weakref.finalize(self, self.gateway.close)

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._popen.pid

    def close(self) -> None:
        """End it. May be called again."""
        self.gateway.close()
        self._end()

    def leave(self) -> None:
        """In a forked child: let go of it. To the child it is gone; the parent's goes on."""
        self._end.detach()
        self._popen.returncode = 0  # so that no method of it signals or awaits the process
        for pipe in (self._popen.stdin, self._popen.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
        if hasattr(self, "_hang_up"):
            self._hang_up.detach()
            self.gateway.leave()


class _Printed:
    """What Java printed since it started: the last of it."""

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        assert popen.stdout is not None
        self._pipe: Final = popen.stdout
        self.last = b""
        os.set_blocking(self._pipe.fileno(), False)

    def drain(self) -> None:
        """Take what there is, and wait for nothing."""
        with suppress(OSError, ValueError):  # there is none, or the pipe is closed
            for _ in range(_READS):
                data = os.read(self._pipe.fileno(), 1 << 16)
                if not data:
                    return
                self.last = (self.last + data)[-_WORDS:]


def _handshake(popen: subprocess.Popen[bytes], seconds: float) -> tuple[int, str]:
    """The port and the token that it prints first, but for what Java itself has to say."""
    assert popen.stdout is not None
    output = popen.stdout.fileno()
    poll = select.poll()
    poll.register(output, select.POLLIN)
    until = time.monotonic() + seconds
    said = b""
    while (found := _ADDRESS.search(said)) is None:
        left = until - time.monotonic()
        if left <= 0 or len(said) > _WORDS or not poll.poll(left * 1000):
            words = _line(said)
            raise EnvironmentFault(
                f"Java did not start within {seconds:g} s"
                + (f"; it said: {words}" if words else "")
            )
        data = os.read(output, _WORDS)
        if not data:
            raise EnvironmentFault(
                "Java does not start: " + (_line(said) or "it ended without a word") + ". Try "
                "`java -version`; a memory limit of this process holds for Java too"
            )
        said += data
    return int(found[1]), found[2].decode()


def _lost(popen: subprocess.Popen[bytes], printed: _Printed, why: str) -> str:
    """Kill it, and tell how it ended."""
    with suppress(subprocess.TimeoutExpired):
        popen.wait(_LAST_SECONDS)
    code = popen.poll()
    printed.drain()
    words = _line(printed.last)
    _end(popen)
    how = why if code is None else f"ended with code {code}"
    return f"the Java process of ScienceWorld {how}" + (f"; it said: {words}" if words else "")


def _line(said: bytes) -> str:
    return " | ".join(said.decode(errors="replace").strip().splitlines()[-4:])[:500]


def _end(popen: subprocess.Popen[bytes]) -> None:
    """It holds nothing that it would have to put away."""
    if popen.returncode is None:  # else its number may be another's by now
        with suppress(OSError):
            os.killpg(popen.pid, signal.SIGKILL)  # JAVA_HOME's may be a script that starts one
    with suppress(subprocess.TimeoutExpired):
        popen.wait(_REAP_SECONDS)
    for pipe in (popen.stdin, popen.stdout):
        if pipe is not None:
            with suppress(OSError):
                pipe.close()
