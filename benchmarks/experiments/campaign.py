"""One campaign of an experiment in its own process: a config in, its result as JSON out.

Not here: which campaign (`runs`).
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import msgspec

from ...actors.campaign import run_campaign
from ...actors.config import parse_config
from ...cli.interrupt import run


def main(path: Path) -> None:
    """Run the campaign of that config beside it; print the result as the last line."""
    config = parse_config(json.loads(path.read_text("utf-8")), path.name)
    began = time.perf_counter()
    result = run(run_campaign, config, path.parent / "run")
    built = msgspec.to_builtins(result)
    print(json.dumps(built | {"seconds": time.perf_counter() - began}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
