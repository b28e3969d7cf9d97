"""`rollwave serve`: our environments for AgentGym's clients and for our own, over HTTP.

Not here: the protocol (`envs.agentgym`).
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, NamedTuple

import trio
import typer

from ..engine.errors import ConfigError
from ..engine.supervisor import ChildSpec
from ..envs.base import EnvSpec
from .envs import find
from .interrupt import keeping, run
from .options import Json
from .output import Output

if TYPE_CHECKING:
    from ..envs.agentgym.server import WireServer
    from ..envs.hosting import Host
    from ..envs.worker.host import Owner

_VARIABLE: Final = "ROLLWAVE_TOKEN"


def serve(
    env: Annotated[
        str,
        typer.Option("--env", help="Environments to serve, separated by commas."),
    ],
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: a free one.")] = 8000,
    token_file: Annotated[
        str,
        typer.Option(
            "--token-file",
            help=f"File with the token that clients have to show; else ${_VARIABLE}.",
        ),
    ] = "",
    without_token: Annotated[
        bool,
        typer.Option("--without-token", help="Let other machines in without a token."),
    ] = False,
    random_ids: Annotated[
        bool, typer.Option("--random-ids", help="Session ids that cannot be guessed.")
    ] = False,
    sessions: Annotated[int, typer.Option("--sessions", min=1, help="Open at most.")] = 4096,
    lease_seconds: Annotated[
        float, typer.Option("--lease-seconds", help="A session unused for so long is closed.")
    ] = 1800.0,
    call_seconds: Annotated[
        float,
        typer.Option("--call-seconds", help="Deadline of a call in a thread or worker."),
    ] = 120.0,
    json: Json = False,
) -> None:
    """Serve environments over HTTP, in AgentGym's protocol and in a batched one.

    It listens on loopback unless told otherwise, and ends on Ctrl-C or SIGTERM: requests
    in progress are answered, and every session is closed.
    """
    from ..envs.agentgym.server import WireServer
    from ..envs.agentgym.sessions import Limits

    specs = [find(name) for name in filter(None, (part.strip() for part in env.split(",")))]
    limits = Limits(
        sessions=sessions,
        lease_seconds=lease_seconds,
        call_seconds=call_seconds,
        random_ids=random_ids,
    )
    output = Output(json=json)
    token = _token(token_file)
    hosts = _hosts(specs)
    server = WireServer(specs, limits=limits, token=token, hosts=hosts.by_id)
    counts = server.sessions.counts

    def farewell() -> str:
        return f"served {counts.steps.total()} steps in {counts.opened.total()} sessions"

    with keeping(farewell):
        run(_serve, server, hosts, host, port, bool(token) or without_token, output)
    output.note(farewell())


class _Hosts(NamedTuple):
    """Where sessions run that do not run in this process."""

    by_id: dict[str, Host]
    owner: Owner | None


def _hosts(specs: Sequence[EnvSpec]) -> _Hosts:
    """Worker processes for the worlds that ask for them."""
    from ..envs.worker.host import Owner, WorkerHost

    costly = [spec for spec in specs if spec.cost == "worker"]
    if not costly:
        return _Hosts({}, None)
    owner = Owner()
    return _Hosts({spec.id: WorkerHost(owner, spec) for spec in costly}, owner)


def _token(path: str) -> str:
    """The token, from the file or the environment variable; "" for none.

    Raises:
        ConfigError: the file cannot be read, or is empty.
    """
    if not path:
        return os.environ.get(_VARIABLE, "")
    try:
        token = Path(path).read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the token file {path}: {error}") from None
    if not token:
        raise ConfigError(f"the token file {path} is empty")
    return token


async def _serve(
    server: WireServer, hosts: _Hosts, host: str, port: int, guarded: bool, output: Output
) -> None:
    """Serve until cancelled, interrupted or told to end."""
    from ..engine.system import ActorSystem
    from ..envs.agentgym.listener import Listener, open_listeners
    from ..envs.hosting import closing

    listeners = await open_listeners(host, port, guarded=guarded)
    async with (
        closing(hosts.by_id.values()),
        ActorSystem() as system,
        trio.open_nursery() as nursery,
    ):
        if hosts.owner is not None:
            await system.start(ChildSpec(name="workers", factory=hosts.owner.actor))
        where = listeners[0].socket.getsockname()
        named = f"[{where[0]}]" if ":" in where[0] else where[0]
        url = f"http://{named}:{where[1]}"
        names = {served.spec.id: f"{url}/{served.dialect.name}" for served in server.served}
        output.table(("environment", "served at"), list(names.items()))
        output.result({"url": url, "environments": names})
        sys.stdout.flush()
        with trio.open_signal_receiver(signal.SIGTERM) as signals:
            nursery.start_soon(Listener(server).run, listeners)
            async for _ in signals:
                nursery.cancel_scope.cancel()
