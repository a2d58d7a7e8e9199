"""ALFWorld games made from the files that the alfworld wheel ships, in the format of the official data.

    floor plan + seed ──furnish──► World ──goals──► GameGoal ──write_game──► traj_data.json, game.tw-pddl

The wheel holds the receptacles and object types of all 120 AI2-THOR rooms, the rules of where an object may
lie, the goals as PDDL and the grammar of the texts. Rooms are split as upstream splits them: "train" and
"valid_seen" share rooms, "valid_unseen" has its own.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import alfworld.gen
from alfworld.agents.utils.misc import Demangler
from alfworld.gen import constants
from alfworld.gen.goal_library import gdict
from alfworld.info import ALFRED_PDDL_PATH, ALFRED_TWL2_PATH

KINDS = (
    "pick_and_place_simple",
    "look_at_obj_in_light",
    "pick_clean_then_place_in_recep",
    "pick_heat_then_place_in_recep",
    "pick_cool_then_place_in_recep",
    "pick_two_obj_and_place",
)
SPLITS = ("train", "valid_seen", "valid_unseen")
LIGHT, TWO = KINDS[1], KINDS[5]
TREATMENTS = {  # kind -> (verb, the objects it works on, the receptacle it needs)
    KINDS[2]: ("clean", "Cleanable", "SinkBasin"),
    KINDS[3]: ("heat", "Heatable", "Microwave"),
    KINDS[4]: ("cool", "Coolable", "Fridge"),
}
FIXED = {  # never picked up; of these only the lamps matter to a task, the others are left out
    *("Bathtub", "Blinds", "Chair", "Curtains", "DeskLamp", "Faucet", "FloorLamp", "Footstool", "HousePlant"),
    *("LaundryHamperLid", "LightSwitch", "Mirror", "Painting", "Poster", "ShowerDoor", "ShowerGlass", "Sink"),
    *("StoveKnob", "Television", "Toaster", "Window"),
}
LAMPS = ("DeskLamp", "FloorLamp")
LAMP_STANDS = {"Desk", "SideTable", "Dresser", "DiningTable", "CoffeeTable", "Shelf"}
RECEPTACLES = set(constants.RECEPTACLES) - set(constants.MOVABLE_RECEPTACLES) - {"PaintingHanger"}
COPIES = 3  # most objects of one type in a room
CROWD = 4  # objects after which a receptacle is avoided
ESCAPES = {"-": "_minus_", "#": "-", "|": "_bar_", "+": "_plus_", ".": "_dot_", ",": "_comma_"}


@dataclass(frozen=True)
class World:
    """A furnished room. Ids are AI2-THOR's, e.g. `Cabinet|+00.65|+00.48|+00.24`."""

    scene: int
    receptacles: dict[str, str]  # receptacle id -> the pose from which it is used, "loc|x|z|rotation|horizon"
    objects: dict[str, str]  # object id -> the receptacle it lies in


@dataclass(frozen=True)
class GameGoal:
    """What a generated game asks for."""

    kind: str
    target: str  # object type
    parent: str = ""  # receptacle type to place it in; empty under a lamp
    lamp: str = ""  # lamp type

    @property
    def params(self) -> dict[str, str | bool]:
        """The goal in ALFRED's terms, as its files name it."""
        return {
            "object_target": self.target,
            "parent_target": self.parent,
            "toggle_target": self.lamp,
            "mrecep_target": "",
            "object_sliced": False,
        }


@dataclass(frozen=True)
class Game:
    """One game: `name`/`trial` is its folder under a split, as in the official data."""

    name: str
    trial: str
    trajectory: Mapping[str, Any]  # traj_data.json
    data: Mapping[str, Any]  # game.tw-pddl


def class_of(thing: str) -> str:
    """The type of an object or receptacle id; a basin's id ends with its own."""
    parts = thing.split("|")
    return parts[4] if len(parts) > 4 else parts[0]


@cache
def floor_plan(scene: int) -> tuple[dict[str, str], tuple[str, ...]]:
    """Receptacles with their poses, and the object types, of one AI2-THOR room."""
    folder = Path(alfworld.gen.__path__[0]) / "layouts"
    poses = json.loads((folder / f"FloorPlan{scene}-openable.json").read_text())
    types = json.loads((folder / f"FloorPlan{scene}-objects.json").read_text())
    receptacles = {
        thing: f"loc|{round(x / 0.25)}|{round(z / 0.25)}|{round(rotation / 90)}|{horizon:.0f}"
        for thing, (x, z, rotation, horizon) in sorted(poses.items())
        if class_of(thing) in RECEPTACLES
    }
    objects = tuple(sorted((set(types) & constants.OBJECTS_SET) - RECEPTACLES))
    return receptacles, tuple(t for t in objects if t not in FIXED or t in LAMPS)


def furnish_room(rng: Random, scene: int) -> World:
    """Put 1 to `COPIES` objects of each type of the room where ALFRED's rules let them lie; one of a lamp."""
    receptacles, types = floor_plan(scene)
    objects: dict[str, str] = {}
    crowd: Counter[str] = Counter()
    for kind in types:
        if kind in LAMPS:
            allowed = [r for r in receptacles if class_of(r) in LAMP_STANDS]
        else:
            allowed = [r for r in receptacles if kind in constants.VAL_RECEPTACLE_OBJECTS[class_of(r)]]
        for _ in range(1 if kind in LAMPS else rng.randint(1, COPIES)):
            free = [r for r in allowed if crowd[r] < CROWD] or allowed
            if not free:
                break
            home = rng.choice(free)
            thing = _near(rng, kind, home)
            while thing in objects:
                thing = _near(rng, kind, home)
            objects[thing] = home
            crowd[home] += 1
    return World(scene, receptacles, objects)


def _near(rng: Random, kind: str, receptacle: str) -> str:
    """An object id with a position close to the receptacle's."""
    place = (float(v) + rng.uniform(-0.5, 0.5) for v in receptacle.split("|")[1:4])
    return "|".join([kind, *(f"{v:+06.2f}" for v in place)])


def goals(kind: str, world: World) -> list[GameGoal]:
    """Every goal of this kind that the room allows and that is not reached from the start."""
    lying: dict[str, list[str]] = {}  # object type -> where its copies lie
    for thing, home in sorted(world.objects.items()):
        lying.setdefault(class_of(thing), []).append(class_of(home))
    movable = {target: homes for target, homes in lying.items() if target not in LAMPS}
    if kind == LIGHT:
        return [GameGoal(kind, target, lamp=lamp) for lamp in LAMPS if lamp in lying for target in movable]
    parents = sorted({class_of(r) for r in world.receptacles})
    tool = ""
    if kind in TREATMENTS:
        _, ability, tool = TREATMENTS[kind]
        movable = {target: homes for target, homes in movable.items()
                   if target in constants.VAL_ACTION_OBJECTS[ability]}  # fmt: skip
        if tool not in parents:
            return []
    return [
        GameGoal(kind, target, parent)
        for target, homes in movable.items()
        for parent in parents
        if target in constants.VAL_RECEPTACLE_OBJECTS[parent] and parent not in homes and parent != tool
        if kind != TWO or len(homes) > 1
    ]


def names(world: World) -> dict[str, str]:
    """What the texts call each object and receptacle, e.g. `cabinet 3`, as upstream numbers them."""
    codes = {thing: escape(thing).lower() for thing in (*world.objects, *world.receptacles)}
    demangler = Demangler(game_infos={code: SimpleNamespace(id=code) for code in codes.values()})
    return {thing: demangler.demangle_alfred_name(code) for thing, code in codes.items()}


def solve_goal(world: World, goal: GameGoal) -> list[str]:
    """Commands that reach the goal, by one who knows where everything is."""
    called = names(world)
    commands: list[str] = []
    opened: set[str] = set()
    pose = ""

    def reach(receptacle: str) -> None:
        nonlocal pose
        if world.receptacles[receptacle] != pose:  # receptacles that share a pose are reached together
            commands.append(f"go to {called[receptacle]}")
            pose = world.receptacles[receptacle]

    def enter(receptacle: str) -> None:
        reach(receptacle)
        if class_of(receptacle) in constants.OPENABLE_CLASS_SET and receptacle not in opened:
            commands.append(f"open {called[receptacle]}")
            opened.add(receptacle)

    def first(kind: str) -> str:
        return next(r for r in sorted(world.receptacles) if class_of(r) == kind)

    targets = [thing for thing in sorted(world.objects) if class_of(thing) == goal.target]
    for target in targets[: 2 if goal.kind == TWO else 1]:
        home = world.objects[target]
        enter(home)
        commands.append(f"take {called[target]} from {called[home]}")
        if goal.kind == LIGHT:
            lamp = next(thing for thing in sorted(world.objects) if class_of(thing) == goal.lamp)
            enter(world.objects[lamp])
            commands.append(f"use {called[lamp]}")
            break
        if goal.kind in TREATMENTS:
            verb, _, tool = TREATMENTS[goal.kind]
            reach(first(tool))
            commands.append(f"{verb} {called[target]} with {called[first(tool)]}")
        enter(first(goal.parent))
        commands.append(f"move {called[target]} to {called[first(goal.parent)]}")
    return commands


def escape(text: str) -> str:
    """PDDL without the characters it forbids; `#` stands for the dash of a type, as in upstream's goals."""
    for character, name in ESCAPES.items():
        text = text.replace(character, name)
    return text


def problem(world: World, goal: GameGoal, trial: str, start: str) -> str:
    """The world and the goal as a PDDL problem."""
    objects, receptacles = sorted(world.objects), sorted(world.receptacles)
    kinds = {thing: class_of(thing) for thing in (*objects, *receptacles)}
    object_types, receptacle_types = {kinds[o] for o in objects}, {kinds[r] for r in receptacles}
    abilities = {name.lower(): members for name, members in constants.VAL_ACTION_OBJECTS.items()}
    declared = ["agent1 # agent"]
    declared += [f"{name}Type # otype" for name in sorted(object_types)]
    declared += [f"{name}Type # rtype" for name in sorted(receptacle_types)]
    declared += [f"{o} # object" for o in objects] + [f"{r} # receptacle" for r in receptacles]
    declared += [f"{location} # location" for location in sorted({*world.receptacles.values(), start})]
    facts = [f"(receptacleType {r} {kinds[r]}Type)" for r in receptacles]
    facts += [f"(objectType {o} {kinds[o]}Type)" for o in objects]
    facts += [
        f"(canContain {parent}Type {target}Type)"
        for parent in sorted(receptacle_types)
        for target in sorted(object_types & set(constants.VAL_RECEPTACLE_OBJECTS[parent]))
    ]
    facts += [f"(pickupable {o})" for o in objects if kinds[o] not in LAMPS]
    facts += [f"(isReceptacleObject {o})" for o in objects if kinds[o] in constants.MOVABLE_RECEPTACLES]
    facts += [f"({name} {o})" for o in objects for name in sorted(abilities) if kinds[o] in abilities[name]]
    facts += [f"(inReceptacle {o} {world.objects[o]})" for o in objects]
    facts += [f"(openable {r})" for r in receptacles if kinds[r] in constants.OPENABLE_CLASS_SET]
    facts += [f"(atLocation agent1 {start})"]
    facts += [f"(receptacleAtLocation {r} {world.receptacles[r]})" for r in receptacles]
    blocks = [
        f"(define (problem plan_{trial})",
        "(:domain alfred)",
        "(:objects",
        *declared,
        ")",
        "(:init",
        *facts,
        ")",
    ]
    # It closes the problem's bracket.
    wanted = gdict[goal.kind]["pddl"].format(obj=goal.target, recep=goal.parent, toggle=goal.lamp, mrecep="")
    return escape("\n".join(blocks)) + escape(wanted)


def start_pose(rng: Random, world: World) -> str:
    """A pose of the room's middle: at a receptacle's pose the intro would describe that one, not the room."""
    taken = {pose.rsplit("|", 1)[0] for pose in world.receptacles.values()}
    while True:
        pose = f"loc|{rng.randint(-12, 12)}|{rng.randint(-12, 12)}|{rng.randint(0, 3)}"
        if pose not in taken:
            return f"{pose}|30"


@cache
def _shipped(path: str) -> str:
    return Path(path).read_text()


def make_game(seed: int, split: str, kind: str, index: int) -> Game:
    """The `index`-th game of a kind: the same for the same arguments on every machine.

    Raises:
        ValueError: unknown split or kind.
    """
    if split not in SPLITS or kind not in KINDS:
        raise ValueError(f"no ALFWorld games {split!r} {kind!r}: splits {SPLITS}, kinds {KINDS}")
    rng = Random(f"{seed} {split} {kind} {index}")
    numbers = constants.TEST_SCENE_NUMBERS if split == "valid_unseen" else constants.TRAIN_SCENE_NUMBERS
    scenes = [
        n for n in numbers for room in sorted(constants.GOALS_VALID[kind]) if n in constants.SCENE_TYPE[room]
    ]
    possible: list[GameGoal] = []
    while not possible:  # a few rooms lack, say, a microwave
        world = furnish_room(rng, rng.choice(scenes))
        possible = goals(kind, world)
    goal = rng.choice(possible)
    trial = f"trial_{split}_{seed}_{index:05d}"
    template = rng.choice(gdict[kind]["templates"])
    task = template.format(
        obj=goal.target.lower(), recep=goal.parent.lower(), toggle=goal.lamp.lower(), mrecep=""
    )
    trajectory = {
        "task_id": trial,
        "task_type": kind,
        "pddl_params": goal.params,
        "scene": {"scene_num": world.scene, "floor_plan": f"FloorPlan{world.scene}"},
        "turk_annotations": {"anns": [{"task_desc": f"{task}."}]},
    }
    data = {
        "pddl_domain": _shipped(ALFRED_PDDL_PATH),
        "grammar": _shipped(ALFRED_TWL2_PATH).replace("UNKNOWN GOAL", task),
        "pddl_problem": problem(world, goal, trial, start_pose(rng, world)),
        "solvable": True,
        "walkthrough": solve_goal(world, goal),
    }
    name = f"{kind}-{goal.target}-None-{goal.parent or goal.lamp}-{world.scene}"
    return Game(name, trial, trajectory, data)


def make_games(seed: int, split: str, count: int, kinds: tuple[str, ...]) -> Iterator[Game]:
    """`count` games, the kinds taking turns."""
    for number in range(count):
        yield make_game(seed, split, kinds[number % len(kinds)], number // len(kinds))


def write_game(folder: Path, game: Game) -> Path:
    """Write the two files that upstream reads under `folder`; the path of game.tw-pddl."""
    trial = folder / game.name / game.trial
    trial.mkdir(parents=True)
    (trial / "traj_data.json").write_text(json.dumps(game.trajectory))
    path = trial / "game.tw-pddl"
    path.write_text(json.dumps(game.data))
    return path
