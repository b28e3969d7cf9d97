"""Where a process listens: `unix:/path` or `tcp:host:port`.

Invariant: a Unix socket's file is accessible to its owner alone, from its first
moment; one that is in use is never taken away from whoever uses it.

Not here: what is said over a connection (`wire`, `transport`).
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

import trio

from .errors import ConfigError


def _parse(address: str) -> tuple[str, int] | Path:
    """Split "tcp:host:port" or "unix:/path"."""
    kind, _, rest = address.partition(":")
    if kind == "unix" and rest:
        return Path(rest)
    host, _, port = rest.rpartition(":")
    if kind == "tcp" and host and port.isdecimal() and int(port) < 2**16:
        return host.strip("[]"), int(port)
    raise ConfigError(f"address {address!r}: write unix:/path or tcp:host:port")


async def dial(address: str) -> trio.SocketStream:
    """Connect a stream to an address.

    Raises:
        OSError: nobody listens there (several, in a group, where a name has several addresses).
        ConfigError: the address is malformed.
    """
    where = _parse(address)
    if isinstance(where, Path):
        return await trio.open_unix_socket(str(where))
    return await trio.open_tcp_stream(*where)


async def listen(address: str) -> trio.SocketListener:
    """Open a listening socket; port 0 takes a free one (see `address_of`).

    The file of a Unix socket that nobody answers at is replaced.

    Raises:
        ConfigError: the address is malformed, taken, or not ours to use.
    """
    where = _parse(address)
    try:
        if isinstance(where, Path):
            return await _listen_unix(where)
        (listener, *others) = await trio.open_tcp_listeners(where[1], host=where[0])
        for other in others:  # a name with several addresses: one is enough for a worker
            await other.aclose()
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {address}: {error.strerror or error}; choose another address"
        ) from error
    return listener


async def _listen_unix(path: Path) -> trio.SocketListener:
    file = trio.Path(path)
    if await file.is_socket() and not await _answers(path):
        await file.unlink()
    plain = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        mask = os.umask(0o177)
        try:
            plain.bind(str(path))
        finally:
            os.umask(mask)
        plain.listen(128)
        return trio.SocketListener(trio.socket.from_stdlib_socket(plain))
    except BaseException:
        plain.close()
        raise


async def _answers(path: Path) -> bool:
    try:
        stream = await trio.open_unix_socket(str(path))
    except OSError:
        return False
    await trio.aclose_forcefully(stream)
    return True


def address_of(listener: trio.SocketListener) -> str:
    """Give the address to `connect` to."""
    name = listener.socket.getsockname()
    if isinstance(name, str):
        return f"unix:{name}"
    return f"tcp:{name[0]}:{name[1]}"
