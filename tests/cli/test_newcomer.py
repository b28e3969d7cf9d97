"""docs/environments.md as its reader takes it: every file saved, every shell line typed.

The reader here is a machine that knows four things: a block behind "`NAME.py`" or
"`NAME.toml`" is saved under that name, an indented block replaces the line that the text
speaks of, shell lines are typed in their order (a server in a shell of its own), and what
the page shows has to be what the command before it printed.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "environments.md").read_text(encoding="utf-8")
COURSE = PAGE[PAGE.index("## Write one in 40 lines") : PAGE.index("## The laws")]
SECONDS = 120


@dataclass(frozen=True)
class Block:
    """A block of code with the paragraph before it."""

    before: str
    language: str
    text: str

    @property
    def name(self) -> str:
        """The file that the reader is told to save, if it is one."""
        named = re.findall(r"`(\w+\.(?:py|toml))`", self.before)
        return named[-1] if named and self.language in ("python", "toml") else ""


def blocks() -> Iterator[Block]:
    before = ""
    for part in re.split(r"(^```.*?^```$)", COURSE, flags=re.DOTALL | re.MULTILINE):
        if found := re.fullmatch(r"```(\w+)\n(.*?)```", part, flags=re.DOTALL):
            yield Block(before.strip().rpartition("\n\n")[2], found[1], found[2])
            before = ""
        else:
            before = part


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass
class Desk:
    """The reader's folder, and the shell in it."""

    folder: Path
    port: int = field(default_factory=free_port)
    said: str = ""
    """By the last command."""
    code: int = 0
    typed: list[str] = field(default_factory=list)
    server: subprocess.Popen[str] | None = None

    @property
    def environment(self) -> dict[str, str]:
        """As after `activate`; pip installs beside the folder, and from nowhere else."""
        site = self.folder.parent / "site"
        return os.environ | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(site),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PIP_TARGET": str(site),
            "PIP_NO_INDEX": "1",
            "PIP_NO_BUILD_ISOLATION": "false",  # pip's way to say: none
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        }

    def save(self, block: Block) -> None:
        (self.folder / block.name).write_text(block.text, encoding="utf-8")

    def mend(self, line: str) -> None:
        """Replace the line with `int` by this one."""
        path = self.folder / "numbers_env.py"
        text, count = re.subn(
            r"^.*\bint\(.*\n", lambda _: line, path.read_text(), flags=re.MULTILINE
        )
        assert count == 1
        path.write_text(text)

    def type(self, line: str) -> None:
        self.typed.append(line)
        words = shlex.split(line.replace("8000", str(self.port)), comments=True)
        if words[:2] == ["rollwave", "serve"]:
            self.serve(words)
            return
        done = subprocess.run(
            words,
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=SECONDS,
        )
        self.said, self.code = done.stdout + done.stderr, done.returncode

    def serve(self, words: list[str]) -> None:
        self.server = subprocess.Popen(
            words,
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            text=True,
            # Tests that were started in the background ignore Ctrl-C, and so would the server.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        assert self.server.stdout is not None
        for told in self.server.stdout:  # until it says where; the test's time limit bounds it
            if str(self.port) in told:
                return
        pytest.fail("the server ended before it served")


@contextmanager
def sitting_down(folder: Path) -> Iterator[Desk]:
    folder.mkdir()
    desk = Desk(folder)
    try:
        yield desk
    finally:
        if desk.server is not None:
            desk.server.kill()
            desk.server.communicate()


def test_a_newcomer_who_copies_the_page_gets_what_it_says(tmp_path: Path) -> None:
    course = list(blocks())
    with sitting_down(tmp_path / "desk") as desk:
        for block, following in zip(course, [*course[1:], None], strict=True):
            where = f"{block.language} behind {block.before!r}: {desk.said}"
            if block.language == "sh":
                shown = following is not None and following.language == "text"
                for line in block.text.splitlines():
                    desk.type(line)
                    assert desk.code == (1 if shown else 0), f"{line}: {desk.said}"
                    follow(desk, line)
            elif block.language == "text":
                assert block.text.strip() in desk.said, where
            elif block.name:
                desk.save(block)
            else:
                assert block.text.startswith(" "), f"nobody says what to do with {where}"
                desk.mend(block.text)
                desk.type("rollwave envs check numbers_env:FAMILY")  # "the same command now"
                assert desk.code == 0, desk.said
        assert desk.server is not None
        desk.server.send_signal(signal.SIGINT)
        told, _ = desk.server.communicate(timeout=SECONDS)
        assert "Traceback" not in told
    commands = {" ".join(line.split()[:2]) for line in desk.typed}
    assert commands >= {"rollwave rollout", "rollwave serve", "rollwave envs", "pip install"}


def follow(desk: Desk, line: str) -> None:
    """What the page says of a command beyond that it works."""
    if line.startswith("rollwave rollout"):
        tasks, policy = {"served": (100, "random")}.get(line[-6:], (30, "expert"))
        assert f"{tasks}" in desk.said
        solved = "100.0%" in desk.said or "100%" in desk.said
        assert solved or policy == "random", desk.said
        assert "fault" not in desk.said.lower() or " 0 " in desk.said, desk.said
    elif line == "python play.py":
        assert desk.said.splitlines()[0] == "Guess a number from 0 to 99."
        assert set(desk.said.splitlines()[1:]) <= {"Higher.", "Lower."}
    elif line == "rollwave envs list":
        assert "guess-number-v1" in desk.said
    elif line.startswith("rollwave envs new"):  # how it goes on, tests/cli/test_skeleton.py has
        assert {path.suffix for path in desk.folder.iterdir()} == {".py"}


def test_the_world_of_the_page_is_short() -> None:
    (world,) = [block.text for block in blocks() if block.name == "numbers_env.py"]
    assert len([line for line in world.splitlines() if line.strip()]) <= 40
