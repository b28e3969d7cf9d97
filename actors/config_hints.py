"""What a refused key or value could have been: the nearest name, or the accepted values.

msgspec says what is wrong and where. This adds what would be right there, found by
walking the types along the same path: no key is listed twice.

Invariant: a hint is only ever added; whatever cannot be followed is left as it is.

Not here: the keys (`sections`, `learners.settings`), and reading a file (`config`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any, Final

import msgspec
from msgspec import inspect

_UNKNOWN: Final = re.compile(r"unknown field `(?P<key>[^`]*)`(?: - at `\$(?P<path>[^`]*)`)?$")
_VALUE: Final = re.compile(r"(?:Invalid enum value|Expected ).* - at `\$(?P<path>[^`]*)`$")


def explained(error: str, kind: type[msgspec.Struct], document: Mapping[str, Any]) -> str:
    """The text of a validation error, and what would be accepted in that place.

    Args:
        error: msgspec's text, with its path.
        kind: the type that the document was to have.
        document: what was read; says which of several types a section has, by its tag.
    """
    root = inspect.type_info(kind)
    if unknown := _UNKNOWN.search(error):
        place = _along(root, document, unknown["path"] or "")
        return error + _nearest(unknown["key"], place, root)
    if wrong := _VALUE.search(error):
        accepted = _literals(_along(root, document, wrong["path"]))
        return f"{error}: it must be one of {', '.join(accepted)}" if accepted else error
    return error


def _along(kind: inspect.Type, value: Any, path: str) -> Iterator[inspect.Type]:
    """The types that may stand at a path: one, or the members of a union."""
    members = list(_members(kind, value))
    key, _, rest = path.removeprefix(".").partition(".")
    if not key:
        yield from members
        return
    for member in members:
        for field in member.fields if isinstance(member, inspect.StructType) else ():
            if field.encode_name == key:
                inner = value.get(key) if isinstance(value, Mapping) else None
                yield from _along(field.type, inner, rest)


def _members(kind: inspect.Type, value: Any) -> Iterator[inspect.Type]:
    """The members of a union; of tagged ones the one that the value names."""
    for member in kind.types if isinstance(kind, inspect.UnionType) else (kind,):
        if not (
            isinstance(member, inspect.StructType)
            and isinstance(value, Mapping)
            and member.tag is not None
            and value.get(str(member.tag_field)) != member.tag
        ):
            yield member


def _nearest(key: str, place: Iterator[inspect.Type], root: inspect.Type) -> str:
    """The key that was meant: one with nearly that name here, or with just that name elsewhere."""
    here = [f.encode_name for t in place if isinstance(t, inspect.StructType) for f in t.fields]
    if near := get_close_matches(key, here, n=1):
        return f": did you mean {near[0]}?"
    elsewhere: dict[str, list[str]] = {}
    for path, tag in _paths(root):
        if path.endswith(f".{key}"):
            elsewhere.setdefault(path, []).extend([tag] if tag else [])
    if elsewhere:
        places = [f"{path} of {', '.join(t)}" if t else path for path, t in elsewhere.items()]
        return f": there is {' and '.join(places[:3])}"
    return f": its keys are {', '.join(here)}" if here else ""


def _paths(kind: inspect.Type, prefix: str = "", tag: str = "") -> Iterator[tuple[str, str]]:
    """The dotted path of every key below a type, and the tag of the type it belongs to."""
    for member in kind.types if isinstance(kind, inspect.UnionType) else (kind,):
        if not isinstance(member, inspect.StructType):
            continue
        owner = str(member.tag or tag)
        for field in member.fields:
            path = f"{prefix}.{field.encode_name}".removeprefix(".")
            yield path, owner
            yield from _paths(field.type, path, owner)


def _literals(kinds: Iterator[inspect.Type]) -> list[str]:
    """The values that literal types accept, as one writes them in TOML."""
    values = [v for t in kinds if isinstance(t, inspect.LiteralType) for v in t.values]
    return [msgspec.json.encode(value).decode() for value in values]
