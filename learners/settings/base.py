"""What all settings have in common: frozen, checked where they are made, no unknown key.

Not here: any setting (the modules beside this one).
"""

from __future__ import annotations

import msgspec

from ...engine.errors import ConfigError


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all settings."""


def require(holds: bool, key: str, value: object, accepted: str) -> None:
    """Refuse a value, naming its key and what would be accepted.

    Raises:
        ConfigError: it does not hold.
    """
    if not holds:
        raise ConfigError(f"{key} = {value!r}: it must be {accepted}")
