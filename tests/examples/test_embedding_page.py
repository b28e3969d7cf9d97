"""The programs in `docs/embedding.md` run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "embedding.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
PROGRAMS = [block for block in BLOCKS if "run(main" in block]


@pytest.mark.parametrize("program", PROGRAMS, ids=["trio", "asyncio"])
def test_a_program_of_the_page_prints_every_episode(program, capsys) -> None:
    exec(compile(program, str(PAGE), "exec"), {"__name__": "__main__"})
    printed = capsys.readouterr().out.splitlines()
    assert len({line.split()[0] for line in printed}) == 8 * 2
    assert all("success" in line for line in printed)
