"""The tree of seeds: run → wave → task → attempt → turn.

A seed is a 63-bit integer; a child's seed is a keyed hash of its parent's seed
and its label, so every episode depends on its own path alone: not on
concurrency, batching order, or how many siblings ran before it. The global
random generator is never touched.

Invariant: equal paths give equal seeds; a changed label anywhere on the path
changes the seed.

Not here: which labels are used (the dispatcher and the sessions say).
"""

from __future__ import annotations

import random
from hashlib import blake2b

Label = str | int


def derive(seed: int, *path: Label) -> int:
    """Give the seed at `path` below `seed`, in [0, 2**63).

    Labels 1 and "1" are different labels; ("a", "b") and ("ab",) are different paths.
    """
    for label in path:
        raw = f"{type(label).__name__[0]}:{label}".encode("utf-8", "surrogatepass")
        key = (seed % 2**64).to_bytes(8, "little")
        digest = blake2b(raw, digest_size=8, key=key, person=b"rollwave").digest()
        seed = int.from_bytes(digest, "little") >> 1
    return seed


def generator(seed: int, *path: Label) -> random.Random:
    """Return a private generator seeded at `path` below `seed`."""
    return random.Random(derive(seed, *path))  # noqa: S311 (simulation, not cryptography)
