"""Derives `tables.json` from the packages and the data that publish these facts.

    pip download --no-deps alfworld==0.3.3 && unzip alfworld-0.3.3-py3-none-any.whl -d wheel
    python -m rollwave.envs.alfworld.derive wheel/alfworld mappings_train.json mappings_test.json
    python -m rollwave.envs.alfworld.derive --check …        # says whether it is up to date

The first argument is the folder of the package alfworld (0.3.3 and 0.4.2 give the same
table); nothing of it is imported but its file of constants. The two mappings are AgentGym's
lists of tasks (`agentenv-alfworld/configs`): which task number is which goal in which room.

Invariant: the same inputs give the same bytes.

Not here: what follows from the table (`tables`). Nothing imports this module.
"""

from __future__ import annotations

import json
import runpy
import sys
from collections import Counter
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from typing import Any, Final

TARGET: Final = Path(__file__).with_name("tables.json")

_KINDS: Final = {
    "pick_and_place_simple": "place",
    "pick_two_obj_and_place": "two",
    "look_at_obj_in_light": "look",
    "pick_clean_then_place_in_recep": "clean",
    "pick_heat_then_place_in_recep": "heat",
    "pick_cool_then_place_in_recep": "cool",
}
_FIXED: Final = ("DeskLamp", "HousePlant")
"""Things that lie in receptacles and cannot be taken."""

_MANY: Final = {"StoveBurner": 4}
"""Receptacles that the layouts name without a place, if there are more than one of them."""

_PARTS: Final = ("SinkBasin", "BathtubBasin")
"""Receptacles whose id in a layout is that of the whole thing, with a part."""


def _plan(layouts: Path, number: int, receptacles: set[str]) -> dict[str, Any]:
    """One floor plan: its receptacles by type, each with the number of its place, and things."""
    things = json.loads((layouts / f"FloorPlan{number}-objects.json").read_text("utf-8"))
    points = json.loads((layouts / f"FloorPlan{number}-openable.json").read_text("utf-8"))
    numbers: dict[tuple[float, ...], int] = {}
    places: dict[str, list[int]] = {}
    for id, point in sorted(points.items()):
        parts = id.split("|")
        kind = parts[-1] if parts[-1] in _PARTS else parts[0]
        if kind in receptacles:
            places.setdefault(kind, []).append(numbers.setdefault(tuple(point), len(numbers)))
    free = len(numbers)
    for kind in sorted(receptacles & set(things) - set(places)):
        count = _MANY.get(kind, 1)
        places[kind] = list(range(free, free + count))
        free += count
    return {
        "places": {kind: places[kind] for kind in sorted(places)},
        "things": sorted(set(things) - receptacles),
    }


def _goals(mappings: list[Mapping[str, Any]]) -> list[str]:
    """Goals by task number, as `kind thing target room`, with `*n` where n follow in a row."""
    goals = []
    for number, mapping in enumerate(mappings):
        kind, thing, _, target, room = mapping["task_type"].split("-")
        assert mapping["item_id"] == number
        goals.append(f"{_KINDS[kind]} {thing} {target} {room}")
    runs = [(goal, len(list(run))) for goal, run in groupby(goals)]
    return [goal if count == 1 else f"{goal} *{count}" for goal, count in runs]


def derive(package: Path, mappings: list[Path]) -> str:
    """Return the text of `tables.json`."""
    constants = runpy.run_path(str(package / "gen/constants.py"))
    movable = set(constants["MOVABLE_RECEPTACLES"])
    receptacles = set(constants["VAL_RECEPTACLE_OBJECTS"]) - movable
    listed = [entry for path in mappings for entry in json.loads(path.read_text("utf-8"))]
    goals = _goals(listed)
    rooms = [room for numbers in constants["SCENE_TYPE"].values() for room in numbers]
    plans = {str(n): _plan(package / "gen/layouts", n, receptacles) for n in rooms}
    holds = {
        kind: sorted(t for t in constants["VAL_RECEPTACLE_OBJECTS"][kind] if "Sliced" not in t)
        for kind in sorted(receptacles)
    }
    held = set().union(*holds.values())
    for plan in plans.values():
        plan["things"] = [t for t in plan["things"] if t in held or t in _FIXED]
    for (_, _, target, room), _ in Counter(
        tuple(goal.split()[:4]) for goal in goals if not goal.startswith("look")
    ).items():  # a published game shows that the room has its target
        places = plans[room]["places"]
        if target not in places:
            places[target] = [1 + max(n for numbers in places.values() for n in numbers)]
    actions = constants["VAL_ACTION_OBJECTS"]
    table = {
        "origin": "alfworld (MIT) and AgentGym (MIT): see LICENSE-tables.txt",
        "rooms": {kind: [n[0], n[-1]] for kind, n in constants["SCENE_TYPE"].items()},
        "kinds": {short: sorted(constants["GOALS_VALID"][long]) for long, short in _KINDS.items()},
        "holds": holds,
        "openable": sorted(set(constants["OPENABLE_CLASS_LIST"]) & receptacles),
        "containers": sorted(movable),
        "fixed": list(_FIXED),
        **{
            name.lower(): sorted(t for t in actions[name] if "Sliced" not in t)
            for name in ("Heatable", "Coolable", "Cleanable", "Toggleable", "Sliceable")
        },
        "plans": plans,
        "goals": goals,
    }
    return _compact(table)


def _compact(table: Mapping[str, Any]) -> str:
    """JSON with one line for each entry of the big parts, so that a change can be read."""
    lines = []
    for key, value in table.items():
        if key in ("holds", "plans"):
            rows = ",\n".join(f"{json.dumps(k)}: {_line(v)}" for k, v in value.items())
            lines.append(f"{json.dumps(key)}: {{\n{rows}\n}}")
        elif key == "goals":
            rows = ",\n".join(map(json.dumps, value))
            lines.append(f"{json.dumps(key)}: [\n{rows}\n]")
        else:
            lines.append(f"{json.dumps(key)}: {_line(value)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _line(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def main(arguments: list[str]) -> int:
    """Write the table, or with `--check` compare it. Returns the exit status."""
    check = "--check" in arguments
    package, *mappings = [Path(a) for a in arguments if a != "--check"]
    text = derive(package, mappings)
    if check:
        same = TARGET.read_text(encoding="utf-8") == text
        sys.stdout.write(f"{TARGET.name} is {'up to date' if same else 'out of date'}\n")
        return 0 if same else 1
    TARGET.write_text(text, encoding="utf-8")
    sys.stdout.write(f"wrote {TARGET.name}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
