"""Derives `recipes.json` from the recipe facts of Minecraft 1.16.2.

    pip install minecraft-data
    python -m rollwave.envs.textcraft.derive            # rewrites recipes.json beside this file
    python -m rollwave.envs.textcraft.derive --check    # says whether it is up to date

The package lists every concrete way to craft an item: a chest from oak planks, a
chest from birch planks, and so on. TextCraft speaks of tags instead: "8 planks".
This script folds the ways back into tags, keeps the first of what the game calls
alternatives (coal or charcoal), and orders the ingredients as the published command
texts do. Those three facts, and the recipe groups, are not in the package: they are
the tables below.

Invariant: the same package version gives the same bytes.

Not here: which recipes are live in a task (`recipes`). Nothing imports this module.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from ...engine.errors import MissingDependency

VERSION: Final = "1.16.2"
TARGET: Final = Path(__file__).with_name("recipes.json")

_WOODS: Final = ("oak", "spruce", "birch", "jungle", "acacia", "dark oak", "crimson", "warped")
_COLOURS: Final = (
    *("white", "orange", "magenta", "light blue", "yellow", "lime", "pink", "gray"),
    *("light gray", "cyan", "purple", "blue", "brown", "green", "red", "black"),
)


def _log_tag(wood: str) -> tuple[str, tuple[str, ...]]:
    log, bark, tag = (
        ("stem", "hyphae", "stems") if wood in ("crimson", "warped") else ("log", "wood", "logs")
    )
    members = (
        f"{wood} {log}",
        f"{wood} {bark}",
        f"stripped {wood} {log}",
        f"stripped {wood} {bark}",
    )
    return f"{wood} {tag}", members


_LOGS: Final = dict(map(_log_tag, _WOODS))

TAGS: Final[Mapping[str, tuple[str, ...]]] = {
    "logs": tuple(item for members in _LOGS.values() for item in members),
    **_LOGS,
    "planks": tuple(f"{wood} planks" for wood in _WOODS),
    "wooden slabs": tuple(f"{wood} slab" for wood in _WOODS),
    "wool": tuple(f"{colour} wool" for colour in _COLOURS),
    "coals": ("coal", "charcoal"),
    "soul fire base blocks": ("soul sand", "soul soil"),
    "stone crafting materials": ("cobblestone", "blackstone"),
    "stone tool materials": ("cobblestone", "blackstone"),
}
"""The 16 item tags that recipes use, with what the game counts among them."""

_USED_BY: Final[Mapping[str, tuple[str, ...]]] = {
    "coals": ("campfire",),
    "stone crafting materials": ("brewing stand", "furnace"),
    "stone tool materials": (
        *("stone axe", "stone hoe", "stone pickaxe", "stone shovel", "stone sword"),
    ),
}
"""Tags with the members of another tag, or of an alternative: where they are meant."""

_ALTERNATIVES: Final = frozenset(
    {
        *("torch", "soul torch", "fire charge", "tnt"),
        *(f"{stone} {cut}" for stone in ("purpur", "quartz") for cut in ("slab", "stairs")),
        *(f"{hue}sandstone {cut}" for hue in ("", "red ") for cut in ("slab", "stairs")),
    }
)
"""Outputs whose ways are one recipe with a choice; TextCraft knows the first choice only."""

GROUPS: Final = (
    *("banner", "bark", "bed", "boat", "bonemeal", "carpet", "concrete powder", "dyed bed"),
    *("planks", "sign", "stained glass", "stained glass pane", "stained terracotta", "sticks"),
    *("wooden button", "wooden door", "wooden fence", "wooden fence gate"),
    *("wooden pressure plate", "wooden slab", "wooden stairs", "wooden trapdoor", "wool"),
)
"""Names of the recipe book's groups that are not items. They are names of kinds, not of things."""

ACCEPTED: Final[Mapping[str, tuple[str, ...]]] = {
    "planks": TAGS["planks"],
    "wool": tuple(item for item in TAGS["wool"] if item != "white wool"),
}
"""What stands for a tag in TextCraft: the items of the group of that name. White wool is in
no group, so it is not wool; a tag without a group is an item of its own ("1 oak logs")."""

_STICK_FIRST: Final = (
    *(" axe", " fence", " hoe", " pickaxe", " shovel", " sword"),
    *("arrow", "rail", "torch"),
)
_ORDER: Final[Mapping[str, str]] = {
    "activator rail": "redstone torch, stick, iron ingot",
    "beacon": "nether star, glass, obsidian",
    "blast furnace": "smooth stone, furnace, iron ingot",
    "cake": "milk bucket, sugar, wheat, egg",
    "campfire": "logs, stick, coals",
    "cartography table": "planks, paper",
    "chain": "iron ingot, iron nugget",
    "crossbow": "string, stick, iron ingot, tripwire hook",
    "daylight detector": "quartz, glass, wooden slabs",
    "detector rail": "redstone, stone pressure plate, iron ingot",
    "diorite": "quartz, cobblestone",
    "dispenser": "redstone, cobblestone, bow",
    "dropper": "redstone, cobblestone",
    "enchanting table": "book, obsidian, diamond",
    "end crystal": "ghast tear, ender eye, glass",
    "end rod": "popped chorus fruit, blaze rod",
    "fletching table": "planks, flint",
    "hopper": "chest, iron ingot",
    "lantern": "torch, iron nugget",
    "lever": "cobblestone, stick",
    "loom": "planks, string",
    "observer": "quartz, redstone, cobblestone",
    "piston": "redstone, cobblestone, planks, iron ingot",
    "powered rail": "redstone, stick, gold ingot",
    "red nether bricks": "nether wart, nether brick",
    "scaffolding": "string, bamboo",
    "shulker box": "chest, shulker shell",
    "smithing table": "planks, iron ingot",
    "soul campfire": "logs, stick, soul fire base blocks",
    "soul lantern": "soul torch, iron nugget",
    "soul torch": "coal, stick, soul fire base blocks",
    "sticky piston": "piston, slime ball",
    "target": "hay block, redstone",
    "tnt": "sand, gunpowder",
    "tripwire hook": "planks, stick, iron ingot",
}
"""Ingredient order of the published texts where it is not the order of the crafting grid."""

Ways = list[tuple[int, dict[str, int]]]
"""Ways to craft one item: how many come out, and ingredient counts in grid order."""


def _ways(recipes: Iterable[Mapping[str, Any]], names: Mapping[int, str]) -> Ways:
    """Read the ways that the package lists for one item, without repeats."""
    ways: Ways = []
    for recipe in recipes:
        rows = recipe.get("inShape") or [recipe["ingredients"]]
        cells = [names[cell] for row in rows for cell in row if cell is not None]
        way = (int(recipe["result"]["count"]), dict(Counter(cells)))
        if way not in ways:
            ways.append(way)
    return ways


def _fold(output: str, ways: Ways) -> Ways:
    """Replace ways that differ only in which member of a tag they take by one with the tag."""
    if output in _ALTERNATIVES and output != "soul torch":
        return ways[:1]
    for tag, members in TAGS.items():
        if output not in _USED_BY.get(tag, (output,)):
            continue
        families: dict[str, list[tuple[str, int]]] = defaultdict(list)
        for number, (count, needs) in enumerate(ways):
            for member in members:
                if member in needs:
                    shape = [(tag if item == member else item, n) for item, n in needs.items()]
                    families[repr((count, sorted(shape)))].append((member, number))
        for family in families.values():
            if {member for member, _ in family} == set(members):
                member, first = family[0]
                count, needs = ways[first]
                folded = {tag if item == member else item: n for item, n in needs.items()}
                gone = {number for _, number in family[1:]}
                ways[first] = (count, folded)
                ways = [way for number, way in enumerate(ways) if number not in gone]
                return _fold(output, ways)
    return ways[:1] if output in _ALTERNATIVES else ways


def _ordered(output: str, needs: Mapping[str, int]) -> dict[str, int]:
    """The ingredients in the order of the published texts."""
    if output in _ORDER:
        return {item: needs[item] for item in _ORDER[output].split(", ")}
    if f" {output}".endswith(_STICK_FIRST) and "stick" in needs:
        return {"stick": needs["stick"], **needs}
    return dict(needs)


def derive() -> str:
    """Return the text of `recipes.json`.

    Raises:
        MissingDependency: the package `minecraft-data` is not installed.
    """
    try:
        package: Any = importlib.import_module("minecraft_data")
    except ImportError:
        raise MissingDependency(
            "deriving the recipe table needs the package minecraft-data: pip install minecraft-data"
        ) from None
    data = package(VERSION)
    names = {item["id"]: item["name"].replace("_", " ") for item in data.items_list}
    lines = []
    for number, recipes in data.recipes.items():
        output = names[int(number)]
        for count, needs in _fold(output, _ways(recipes, names)):
            inputs = ", ".join(f"{n} {item}" for item, n in _ordered(output, needs).items())
            lines.append(f"{count} {output} using {inputs}")
    table = {
        "origin": f"minecraft-data, pc {VERSION}",
        "groups": GROUPS,
        "accepted": ACCEPTED,
        "recipes": sorted(lines, key=lambda line: line.partition(" ")[2]),
    }
    return json.dumps(table, indent=1) + "\n"


def main(arguments: list[str]) -> int:
    """Write the table, or with `--check` compare it. Returns the exit status."""
    text = derive()
    if "--check" in arguments:
        same = TARGET.read_text(encoding="utf-8") == text
        sys.stdout.write(f"{TARGET.name} is {'up to date' if same else 'out of date'}\n")
        return 0 if same else 1
    TARGET.write_text(text, encoding="utf-8")
    sys.stdout.write(f"wrote {TARGET.name}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
