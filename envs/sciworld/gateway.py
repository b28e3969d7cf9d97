"""Calls into a Java process, over py4j's protocol: one socket, several calls in one write.

    room, count = gateway.calls(Call(agent, "look"), Call(Static("util.Ids"), "count"))

A call is a few lines of text, and so is its answer. py4j's own client asks about classes
and members, and sends a message for each object that Python forgets: two thirds of the
time of a short call. Here an object is a name (`Ref`) until it is dropped.

Invariants:

* a text is one argument, whatever it holds: line breaks and backslashes are escaped, and
  what is no Unicode is replaced;
* an answer that does not come within the deadline, or that is cut, is the end of the Java
  process (`EnvironmentLost`): it is never taken for the answer of a later call, also where
  its caller was interrupted.

Not here: the process (`jvm`).
"""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from ...engine.errors import EnvironmentFault, EnvironmentLost

_PLAIN: Final = ("s", "i", "L", "d", "b")
_NOTHING: Final = ("", "n", "v")

Value = Any
"""Of an answer: str, int, float, bool, None or a `Ref`."""


@dataclass(frozen=True, slots=True)
class Ref:
    """An object in the Java process, by the name it goes by there."""

    name: str


@dataclass(frozen=True, slots=True)
class Static:
    """A class, to call its static methods."""

    name: str


@dataclass(frozen=True, slots=True)
class Long:
    """A number that is a `long` there, however small."""

    value: int


class Call:
    """A method of an object or class, and its arguments."""

    __slots__ = ("text",)

    def __init__(self, target: Ref | Static, method: str, *arguments: object) -> None:
        name = target.name if isinstance(target, Ref) else f"z:{target.name}"
        self.text: Final = f"c\n{name}\n{method}\n{_spelt(arguments)}e\n"


class New(Call):
    """A constructor."""

    __slots__ = ()

    def __init__(self, name: str, *arguments: object) -> None:
        object.__setattr__(self, "text", f"i\n{name}\n{_spelt(arguments)}e\n")


class Item(Call):
    """An item of an array; its length, where none is named."""

    __slots__ = ()

    def __init__(self, array: Ref, index: int | None = None) -> None:
        what = f"e\n{array.name}" if index is None else f"g\n{array.name}\ni{index}"
        object.__setattr__(self, "text", f"a\n{what}\ne\n")


class Gateway:
    """The connection. One caller at a time; `drop` and `close` may come from any thread."""

    def __init__(
        self,
        port: int,
        token: str,
        *,
        lost: Callable[[str], str],
        drain: Callable[[], None],
        seconds: float,
    ) -> None:
        """
        Args:
            port: on the loopback interface.
            token: that the Java process asks for.
            lost: ends the process, and tells how it ended.
            drain: takes what the process printed, which would wait for a reader otherwise.
            seconds: for one answer.

        Raises:
            EnvironmentLost: it does not answer.
        """
        self._lost = lost
        self._drain = drain
        self._dropped: deque[str] = deque()
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            self._socket.settimeout(seconds)
            self._socket.connect(("127.0.0.1", port))
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._answers = self._socket.makefile("rb", buffering=1 << 16)
        except BaseException:
            self._socket.close()
            raise
        try:
            self._socket.sendall(f"A\n{_escaped(token)}\n".encode())
            self._read()
        except OSError as error:
            self.close()
            raise EnvironmentLost(self._lost(f"does not answer ({error})")) from error
        except BaseException:
            self.close()
            raise
        self._hurry()

    def _hurry(self) -> None:
        """Let Java send each answer at once: several in a row would wait 40 ms for each other."""
        kind = self.call(Static("java.lang.Class"), "forName", "py4j.GatewayServer")
        field = self.call(kind, "getDeclaredField", "connections")
        self.call(field, "setAccessible", True)
        connections = self.call(field, "get", Ref("GATEWAY_SERVER"))
        ours = self.call(connections, "get", 0)
        served = self.call(ours, "getSocket")
        self.call(served, "setTcpNoDelay", True)
        self.drop(kind, field, connections, ours, served)

    def call(self, target: Ref | Static, method: str, *arguments: object) -> Value:
        """Call one method.

        Raises:
            EnvironmentFault: it raised.
            EnvironmentLost: the process is gone.
        """
        return self.calls(Call(target, method, *arguments))[0]

    def calls(self, *calls: Call) -> list[Value]:
        """Call one after another; all are sent before the first answer is read.

        Raises:
            EnvironmentFault: one raised. Those behind it were called all the same.
            EnvironmentLost: the process is gone.
        """
        text = "".join([call.text for call in calls])
        dropped = 0
        self._drain()
        try:
            with suppress(IndexError):
                while True:
                    text = f"m\nd\n{self._dropped.popleft()}\ne\n{text}"
                    dropped += 1
            self._socket.sendall(text.encode("utf-8", "replace"))
            answers = [self._read() for _ in range(dropped + len(calls))][dropped:]
        except (OSError, ValueError) as error:
            why = "did not answer in time" if isinstance(error, TimeoutError) else "is gone"
            self.close()
            raise EnvironmentLost(self._lost(why)) from error
        except BaseException:  # an interrupt: the answers to come are nobody's
            self.close()
            raise
        try:
            return [self._value(answer) for answer in answers]
        except EnvironmentFault:  # nobody gets to know the others, to drop them
            self.drop(*[Ref(answer[2:]) for answer in answers if _names(answer)])
            raise

    def drop(self, *refs: Ref) -> None:
        """Forget objects: Java may, too, from the next call on."""
        self._dropped.extend(ref.name for ref in refs)

    def close(self) -> None:
        """Hang up. May be called again, also while another thread waits for an answer."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        answers = getattr(self, "_answers", None)
        if answers is not None:
            with suppress(OSError, RuntimeError, ValueError):
                answers.close()
        self._socket.close()

    def leave(self) -> None:
        """In a forked child: close its copy of the socket. The parent's connection stays."""
        with suppress(OSError):
            os.close(self._socket.detach())

    def _read(self) -> str:
        line: bytes = self._answers.readline()
        if not line.endswith(b"\n"):
            raise ConnectionResetError("the connection was cut")
        text = line[:-1].decode("utf-8", "replace")
        return text.removeprefix("!")

    def _value(self, answer: str) -> Value:
        if not answer.startswith("y"):
            raise EnvironmentFault(f"ScienceWorld's simulator raised: {self._told(answer)}")
        kind, text = answer[1:2], answer[2:]
        if kind == "s":
            return _unescaped(text)
        if kind in ("i", "L"):
            return int(text)
        if kind == "d":
            return float(text)
        if kind == "b":
            return text == "true"
        return None if kind in _NOTHING else Ref(text)

    def _told(self, answer: str) -> str:
        """The text of what was raised."""
        if answer[1:2] == "r":
            raised = Ref(answer[2:])
            told = str(self.call(raised, "toString"))
            self.drop(raised)
        else:
            told = _unescaped(answer[2:])
        return told.partition("\n")[0][:500]


def _names(answer: str) -> bool:
    """It names an object, that was returned or raised."""
    kind = answer[1:2]
    return kind not in (*_PLAIN, *_NOTHING) if answer.startswith("y") else kind == "r"


def _spelt(arguments: tuple[object, ...]) -> str:
    return "".join([_argument(argument) for argument in arguments])


def _argument(value: object) -> str:
    match value:
        case bool():
            return "btrue\n" if value else "bfalse\n"
        case int():
            return f"i{value}\n"
        case Long(number):
            return f"L{number}\n"
        case str():
            return f"s{_escaped(value)}\n"
        case Ref(name):
            return f"r{name}\n"
        case None:
            return "n\n"
        case _:
            raise TypeError(f"no argument for Java: {value!r}")


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\r", "\\r").replace("\n", "\\n")


def _unescaped(text: str) -> str:
    if "\\" not in text:
        return text
    parts = text.split("\\\\")
    return "\\".join([part.replace("\\n", "\n").replace("\\r", "\r") for part in parts])
