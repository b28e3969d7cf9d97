"""`rollwave serve` as a process of its own, and the refusals that it makes before it starts."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from rollwave.cli.main import INTERRUPTED, USAGE, main


@contextmanager
def served(*options: str, end: signal.Signals = signal.SIGTERM, code: int = 0) -> Iterator[Any]:
    """Serve, give what was printed, end with that signal and look at the exit code."""
    command = [sys.executable, "-m", "rollwave", "serve", "--port", "0", "--json", *options]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Tests that were started in the background ignore Ctrl-C, and so would the server.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            yield json.loads(process.stdout.readline() or process.stderr.read())
        finally:
            process.send_signal(end)
            _, said = process.communicate(timeout=60)
        assert "steps in" in said
        assert process.returncode == code


def test_worlds_are_served_until_told_to_end(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("abc\n")
    with served("--env", "maze-v1,textcraft-v1", "--token-file", str(token)) as answer:
        assert answer["environments"] == {
            "maze-v1": answer["url"] + "/maze",
            "textcraft-v1": answer["url"] + "/textcraft",
        }
        with httpx.Client(headers={"authorization": "Bearer abc"}) as client:
            assert client.post(answer["url"] + "/maze/create").json() == {"id": 0}
            document = client.get(answer["url"] + "/openapi.json").json()
            assert "/textcraft/step" in document["paths"]
        assert httpx.get(answer["url"]).status_code == 401
        assert httpx.get(answer["url"] + "/health").json() == {"status": "ok"}


def test_ctrl_c_ends_it_too() -> None:
    with served("--env", "maze-v1", end=signal.SIGINT, code=INTERRUPTED) as answer:
        # AgentGym's client for the maze is given the address with its path.
        assert httpx.post(answer["url"] + "/maze/create").status_code == 200


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--env", "maze-v1", "--host", "0.0.0.0"], "set a token"),
        (["--env", "nothing-v1"], "no environment"),
        (["--env", ","], "at least one environment"),
        (["--env", "maze-v1", "--token-file", "/does/not/exist"], "cannot read the token file"),
        (["--env", "maze-v1", "--lease-seconds", "0"], "lease_seconds must be above 0"),
        (["--env", "maze-v1,maze-v1"], "choose one"),
        (["--env", "http://127.0.0.1:1/maze?tasks=26"], "is served already"),
    ],
)
def test_what_cannot_be_served_is_refused_in_a_line(
    options: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "--port", "0", *options]) == USAGE
    assert text in capsys.readouterr().err


def test_an_empty_token_file_guards_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "token"
    empty.touch()
    assert main(["serve", "--env", "maze-v1", "--token-file", str(empty)]) == USAGE
    assert "is empty" in capsys.readouterr().err


@pytest.mark.slow
def test_schemathesis_finds_nothing(tmp_path: Path) -> None:
    """It has a plugin for pytest, so it belongs into an environment of its own, on the PATH."""
    tool = shutil.which("schemathesis")
    if tool is None:
        pytest.skip("schemathesis is not on the PATH")
    with served("--env", "textcraft-v1,maze-v1,wordle-v1") as answer:
        command = [tool, "run", answer["url"] + "/openapi.json", "--max-examples", "50"]
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False
        )
        assert done.returncode == 0, done.stdout[-3000:]
        assert httpx.get(answer["url"] + "/health").json() == {"status": "ok"}
