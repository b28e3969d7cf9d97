"""The sessions of one worker process: calls in, answers out, one after another.

Invariant: every request has one answer; whatever the world raises, `SystemExit` too, is
an answer and harms no other session.

Not here: the connection and the process (`main`).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from ...engine.codec import Message
from ...engine.errors import EnvironmentFault
from ..answers import require_actions, require_facts, require_result, require_text
from ..base import Environment
from .page import Page
from .protocol import (
    About,
    Census,
    Close,
    Counted,
    Done,
    Facts,
    Hint,
    Hinted,
    List,
    Listed,
    Load,
    Open,
    Request,
    Reset,
    Said,
    Step,
    raised,
)

SESSION_REQUESTS = (Open, Reset, Step, Hint, List, About, Close, Census)
"""What is asked after `Load`."""


class Sessions:
    """A table of sessions by number."""

    def __init__(self, make: Callable[[], Environment], page: Page) -> None:
        self._make = make
        self._page = page
        self._open: dict[int, Environment] = {}

    def answer(self, request: Request) -> Message:
        """Do what is asked."""
        if isinstance(request, Census | Load):
            return Counted(len(self._open), self._page.read().calls)
        self._page.begin(request.session)
        try:
            return self._call(request)
        except (Exception, SystemExit, KeyboardInterrupt) as error:  # noqa: BLE001 (the boundary)
            return raised(error)
        finally:
            self._page.end(step=type(request) is Step)
            self._page.count(len(self._open))

    def close(self) -> None:
        """Close all."""
        for environment in self._open.values():
            with suppress(Exception, SystemExit):
                environment.close()
        self._open.clear()

    def _call(self, request: Open | Reset | Step | Hint | List | About | Close) -> Message:
        match request:
            case Step(session=number, action=action):
                text = action.decode(errors="surrogatepass")
                return require_result(self._session(number).step(text))
            case Reset(session=number, task=task, seed=seed):
                observation = self._session(number).reset(task, seed)
                require_text("reset", observation)
                return Said(observation)
            case Open(session=number):
                self._open[number] = self._make()
                return Done()
            case Close(session=number):
                environment = self._open.pop(number, None)
                if environment is not None:
                    environment.close()
                return Done()
            case Hint(session=number):
                hint = self._session(number).expert()
                if hint is not None:
                    require_text("expert", hint)
                return Hinted(hint)
            case List(session=number):
                return Listed(require_actions(self._session(number).available_actions()))
            case About(session=number):
                return Facts(dict(require_facts(self._session(number).about())))

    def _session(self, number: int) -> Environment:
        environment = self._open.get(number)
        if environment is None:
            raise EnvironmentFault(f"session {number} is not open: `open` comes first")
        return environment
