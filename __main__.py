"""`python -m rollwave`: the same as the `rollwave` command."""

from __future__ import annotations

import sys

from .cli.main import main

sys.exit(main())
