"""How a model writes an action down: one format a file.

`get_format` gives the format of a name; `FORMATS` lists them. A format knows no
world: what a world accepts as an action is for the world to say.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

from ...engine.errors import ConfigError
from .base import ActionFormat, Parsed
from .raw import Raw
from .react import React

__all__ = ["FORMATS", "ActionFormat", "Parsed", "Raw", "React", "get_format"]

_ALL: Final[tuple[ActionFormat, ...]] = (React(), React(strict=True), Raw())
FORMATS: Final = MappingProxyType({form.name: form for form in _ALL})
"""Every format by its name."""


def get_format(name: str) -> ActionFormat:
    """Return the format of that name; formats hold no state and are shared.

    Raises:
        ConfigError: no such format; the text lists those there are.
    """
    try:
        return FORMATS[name]
    except KeyError:
        known = ", ".join(FORMATS)
        raise ConfigError(f"no action format {name!r}; there are: {known}") from None
