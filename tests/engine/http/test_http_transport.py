"""The HTTP transport with servers that behave: bodies, kept-alive connections, TLS, proxies."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from rollwave.engine.http_transport import TrioTransport, transport_for
from rollwave.engine.testing import run_simulated

URL = "http://server/path?q=1"
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"


# -- servers that behave ------------------------------------------------------------


async def test_requests_follow_each_other_on_one_connection(http: Any, path: str) -> None:
    server = http.Server([OK, OK, OK])
    async with http.unix_server(path, server), TrioTransport(uds=path) as transport:
        for _ in range(3):
            response = await http.exchange(transport, headers={"X-Who": "me"}, content=b"abc")
            assert (response.status_code, response.content) == (200, b"hello")
            assert response.extensions["http_version"] == b"HTTP/1.1"
        assert server.connections == 1
        assert transport.statistics() == {"open": 1, "idle": 1, "waiting": 0}
    assert transport.statistics() == {"open": 0, "idle": 0, "waiting": 0}
    head, _, body = server.requests[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /path?q=1 HTTP/1.1\r\n")
    assert b"x-who: me" in head.lower().split(b"\r\n")
    assert body == b"abc"


CHUNKED = (
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\n\r\n"
)
UNTIL_CLOSE = b"HTTP/1.0 200 OK\r\n\r\nhello"
INTERIM = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + OK


@settings(max_examples=60, deadline=None)
@given(
    answer=st.sampled_from([OK, CHUNKED, UNTIL_CLOSE, INTERIM]),
    cuts=st.sets(st.integers(1, 120), max_size=6),
)
def test_the_answer_is_the_same_however_the_bytes_arrive(
    http: Any, tmp_path_factory: pytest.TempPathFactory, answer: bytes, cuts: set[int]
) -> None:
    path = str(tmp_path_factory.mktemp("u") / "s")
    edges = [0, *sorted(cut for cut in cuts if cut < len(answer)), len(answer)]

    async def dribble(stream: trio.SocketStream) -> None:
        await http.read_request(stream)
        for start, end in pairwise(edges):
            await stream.send_all(answer[start:end])
            await trio.sleep(0.1)

    async def main() -> bytes:
        async with (
            http.unix_server(path, http.Server(dribble)),
            TrioTransport(uds=path) as transport,
        ):
            return bytes((await http.exchange(transport)).content)

    assert run_simulated(main) == b"hello"


async def test_it_is_a_transport_of_httpx(http: Any, path: str) -> None:
    moved = b"HTTP/1.1 302 Found\r\nlocation: /there\r\ncontent-length: 0\r\n\r\n"
    json = b'HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\n{"a": 1}'
    server = http.Server([moved, json, json])
    async with (
        http.unix_server(path, server),
        httpx.AsyncClient(
            transport=TrioTransport(uds=path), base_url="http://server", follow_redirects=True
        ) as client,
    ):
        assert (await client.get("/here")).json() == {"a": 1}
        async with client.stream("POST", "/more", json={"b": 2}) as response:
            assert b"".join([part async for part in response.aiter_raw()]) == b'{"a": 1}'
        assert server.connections == 1


async def test_a_body_can_be_streamed_to_the_server(http: Any, path: str) -> None:
    async def parts() -> AsyncIterator[bytes]:
        for part in (b"ab", b"", b"cd"):
            yield part

    server = http.Server([OK])
    async with http.unix_server(path, server), TrioTransport(uds=path) as transport:
        await http.exchange(transport, content=parts(), headers={"content-length": "4"})
    assert server.requests[0].endswith(b"\r\n\r\nabcd")


# -- kept-alive connections ---------------------------------------------------------


async def test_a_connection_that_the_server_closed_is_noticed_when_it_is_taken(
    http: Any, path: str
) -> None:
    server = http.Server([OK])  # one answer, then it hangs up
    async with http.unix_server(path, server), TrioTransport(uds=path) as transport:
        for k in range(3):
            assert (await http.exchange(transport)).status_code == 200
            await trio.testing.wait_all_tasks_blocked()
            assert server.connections == k + 1


async def test_unasked_bytes_disqualify_a_connection(http: Any, path: str) -> None:
    server = http.Server([OK + b"HTTP/1.1 500 Surprise\r\n\r\n"])
    async with http.unix_server(path, server), TrioTransport(uds=path) as transport:
        assert (await http.exchange(transport)).content == b"hello"
        assert transport.statistics()["idle"] == 0
        assert (await http.exchange(transport)).content == b"hello"


async def test_connection_close_is_honoured(http: Any, path: str) -> None:
    server = http.Server([b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 1\r\n\r\nx"])
    async with http.unix_server(path, server), TrioTransport(uds=path) as transport:
        await http.exchange(transport)
        assert transport.statistics() == {"open": 0, "idle": 0, "waiting": 0}


async def test_idle_connections_are_dropped_by_age_and_number(
    http: Any, path: str, autojump_clock: trio.testing.MockClock
) -> None:
    server = http.Server([OK] * 9)
    async with (
        http.unix_server(path, server),
        TrioTransport(uds=path, keepalive_expiry=5.0, max_keepalive_connections=2) as transport,
    ):
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(http.exchange, transport)
        assert transport.statistics() == {"open": 2, "idle": 2, "waiting": 0}
        await trio.sleep(4.9)
        await http.exchange(transport)  # takes the newest, and finds the oldest still fresh
        assert (server.connections, transport.statistics()["idle"]) == (4, 2)
        await trio.sleep(0.2)
        await http.exchange(transport)  # the other one is too old by now
        assert (server.connections, transport.statistics()["idle"]) == (4, 1)
        await trio.sleep(5.0)
        await http.exchange(transport)
        assert server.connections == 5


@pytest.mark.parametrize(
    ("method", "extensions"), [("GET", {}), ("PUT", {}), ("POST", {"repeatable": True})]
)
async def test_a_stale_connection_is_replaced_where_repeating_is_safe(
    http: Any, path: str, method: str, extensions: dict[str, Any]
) -> None:
    server = http.Fickle()
    async with http.unix_server(path, server), TrioTransport(uds=path) as transport:
        await http.exchange(transport)
        response = await http.exchange(transport, method, extensions=extensions)
        assert response.content == b"hello"
        assert (server.connections, len(server.requests)) == (2, 3)


async def test_a_request_with_effects_is_not_repeated(http: Any, path: str) -> None:
    server = http.Fickle()
    async with http.unix_server(path, server), TrioTransport(uds=path) as transport:
        await http.exchange(transport)
        with pytest.raises(httpx.RemoteProtocolError, match="hung up without a response"):
            await http.exchange(transport)
        assert (server.connections, len(server.requests)) == (1, 2)


async def test_nothing_is_repeated_after_the_first_byte_of_an_answer(http: Any, path: str) -> None:
    server = http.Fickle(kind=b"H")
    async with http.unix_server(path, server), TrioTransport(uds=path) as transport:
        await http.exchange(transport)
        with pytest.raises(httpx.RemoteProtocolError):
            await http.exchange(transport, "GET")
        assert server.connections == 1


async def test_a_streamed_body_is_not_repeated(http: Any, path: str) -> None:
    async def parts() -> AsyncIterator[bytes]:
        yield b"once"

    server = http.Fickle()
    async with http.unix_server(path, server), TrioTransport(uds=path) as transport:
        await http.exchange(transport)
        with pytest.raises(httpx.TransportError):
            await http.exchange(transport, "PUT", content=parts(), headers={"content-length": "4"})
        assert server.connections == 1


async def test_a_fresh_connection_is_never_repeated_and_a_repeat_only_once(
    http: Any, path: str
) -> None:
    server = http.Fickle(answers=0)
    async with http.unix_server(path, server), TrioTransport(uds=path) as transport:
        with pytest.raises(httpx.RemoteProtocolError):
            await http.exchange(transport, "GET")
        assert server.connections == 1

    always = http.Fickle(answers=1)
    always.connections = 0
    async with TrioTransport(uds=path + "2") as transport:

        async def handler(stream: trio.SocketStream) -> None:
            if always.connections >= 1:
                always.connections += 1
                async with stream:
                    await http.read_request(stream)
                return
            await always(stream)

        async with http.unix_server(path + "2", handler):
            await http.exchange(transport)
            with pytest.raises(httpx.RemoteProtocolError):
                await http.exchange(transport, "GET")
            assert always.connections == 2
            assert transport.statistics() == {"open": 0, "idle": 0, "waiting": 0}


# -- TLS and proxies ----------------------------------------------------------------


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-signed certificate for `server`, and its key."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs the openssl command to make a certificate")
    folder = tmp_path_factory.mktemp("tls")
    crt, key = folder / "server.crt", folder / "server.key"
    command = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command += ["-subj", "/CN=server", "-addext", "subjectAltName=DNS:server"]
    subprocess.run([*command, "-keyout", key, "-out", crt], check=True, capture_output=True)
    return crt, key


async def test_https_verifies_the_name_and_keeps_the_connection(
    http: Any, path: str, certificate: tuple[Path, Path]
) -> None:
    crt, key = certificate
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(crt, key)
    connections = 0

    async def secure(stream: trio.SocketStream) -> None:
        nonlocal connections
        connections += 1
        tls = trio.SSLStream(stream, context, server_side=True, https_compatible=True)
        try:
            while await http.read_request(tls):
                await tls.send_all(OK)
        except trio.BrokenResourceError:
            pass  # refused our certificate, or hung up
        finally:
            await trio.aclose_forcefully(tls)

    trusting = ssl.create_default_context(cafile=str(crt))
    async with http.unix_server(path, secure):
        async with TrioTransport(uds=path, verify=trusting) as transport:
            for _ in range(2):
                response = await http.exchange(transport, url="https://server/")
                assert response.content == b"hello"
            assert connections == 1
            with pytest.raises(httpx.ConnectError, match="certificate"):
                await http.exchange(transport, url="https://other/")
            response = await http.exchange(
                transport, url="https://other/", extensions={"sni_hostname": "server"}
            )
            assert response.status_code == 200
        async with TrioTransport(uds=path) as strict:
            with pytest.raises(httpx.ConnectError, match="certificate"):
                await http.exchange(strict, url="https://server/")
            assert strict.statistics()["open"] == 0


async def test_the_connect_timeout_covers_the_tls_handshake(
    http: Any, path: str, autojump_clock: trio.testing.MockClock
) -> None:
    async with (
        http.unix_server(path, http.Server(http.silent)),
        TrioTransport(uds=path, verify=False) as transport,
    ):
        with pytest.raises(httpx.ConnectTimeout):
            await http.exchange(
                transport, url="https://server/", extensions=http.timeouts(connect=2.0)
            )
        assert transport.statistics()["open"] == 0


def test_where_a_proxy_is_set_httpx_takes_over(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    url = httpx.URL("http://server:8000/v1")
    assert isinstance(transport_for(url), TrioTransport)
    monkeypatch.setenv("http_proxy", "proxy.example:3128")
    assert isinstance(transport_for(url, max_connections=5), httpx.AsyncHTTPTransport)
    assert isinstance(transport_for(httpx.URL("https://server/")), TrioTransport)
    monkeypatch.setenv("no_proxy", "server")
    assert isinstance(transport_for(url), TrioTransport)
