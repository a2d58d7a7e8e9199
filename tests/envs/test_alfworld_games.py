"""Generated and official ALFWorld tasks: what a manifest holds, before any game is played."""

import json
import shutil
from collections import Counter

import pytest
from alfworld.gen import constants

from hindsight.configs.schema import Env
from hindsight.envs.alfworld.env import AlfworldFamily
from hindsight.envs.alfworld.games import KINDS, SPLITS, furnish_room, goals, make_game, make_games
from hindsight.envs.base import DataMissing


@pytest.fixture(autouse=True)
def no_official_data(monkeypatch):
    monkeypatch.delenv("ALFWORLD_DATA", raising=False)


def family(cache, **settings):
    return AlfworldFamily(Env(**{"train_tasks": 12, "eval_tasks": 6, **settings}), cache)


def test_the_same_seed_makes_the_same_tasks_in_another_cache(tmp_path):
    first, second = (family(tmp_path / name).manifest() for name in "ab")
    assert first == second
    assert first.digest == second.digest
    assert str(tmp_path) not in json.dumps([task.data for task in (*first.train, *first.evaluation)])
    assert family(tmp_path / "a", seed=1).manifest().digest != first.digest


def test_a_split_is_balanced_and_its_tasks_differ(tmp_path):
    manifest = family(tmp_path).manifest()
    assert Counter(task.kind for task in manifest.train) == dict.fromkeys(KINDS, 2)
    assert Counter(task.kind for task in manifest.evaluation) == dict.fromkeys(KINDS, 1)
    tasks = (*manifest.train, *manifest.evaluation)
    assert len({task.id for task in tasks}) == len({task.data["sha256"] for task in tasks}) == 18


def test_only_the_wanted_kinds_are_made(tmp_path):
    tasks = family(tmp_path, kinds=[KINDS[3], KINDS[0]]).draw("train", 5)
    assert [task.kind for task in tasks] == [KINDS[0], KINDS[3], KINDS[0], KINDS[3], KINDS[0]]
    with pytest.raises(ValueError, match="'pick_flowers'"):
        family(tmp_path, kinds=["pick_flowers"])


def test_unseen_rooms_are_apart_from_training_rooms():
    rooms = {
        split: {game.trajectory["scene"]["scene_num"] for game in make_games(0, split, 120, KINDS)}
        for split in SPLITS
    }
    assert rooms["train"] <= set(constants.TRAIN_SCENE_NUMBERS)
    assert rooms["valid_seen"] <= set(constants.TRAIN_SCENE_NUMBERS)
    assert rooms["valid_unseen"] <= set(constants.TEST_SCENE_NUMBERS)
    assert not rooms["train"] & rooms["valid_unseen"]
    assert len(rooms["train"]) > 40
    with pytest.raises(ValueError, match="'test'"):
        make_game(0, "test", KINDS[0], 0)


def test_objects_lie_where_the_rules_allow_and_no_goal_is_reached_at_the_start():
    from random import Random

    from hindsight.envs.alfworld.games import LAMPS, class_of

    world = furnish_room(Random(0), 301)
    for thing, home in world.objects.items():
        if class_of(thing) not in LAMPS:
            assert class_of(thing) in constants.VAL_RECEPTACLE_OBJECTS[class_of(home)]
    for goal in goals(KINDS[0], world):
        assert all(
            class_of(home) != goal.parent
            for thing, home in world.objects.items()
            if class_of(thing) == goal.target
        )


def test_whoever_writes_a_split_second_takes_the_first_ones(tmp_path, monkeypatch):
    slow, fast = family(tmp_path), family(tmp_path)
    write = slow._write

    def overtaken(*args):
        fast.draw("train", 6)
        return write(*args)

    monkeypatch.setattr(slow, "_write", overtaken)
    assert slow.draw("train", 6) == fast.draw("train", 6)
    assert [path for path in (tmp_path / "alfworld" / "games").iterdir() if path.name.startswith(".")] == []


def test_an_interrupted_split_is_written_again(tmp_path, monkeypatch):
    broken = family(tmp_path)
    monkeypatch.setattr(
        broken, "_write", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    with pytest.raises(OSError, match="No space left"):
        broken.draw("train", 6)
    assert list((tmp_path / "alfworld" / "games").iterdir()) == []
    assert len(family(tmp_path).draw("train", 6)) == 6


@pytest.fixture
def official(tmp_path):
    """A folder laid out like the official data, filled with generated games."""
    made = family(tmp_path / "made")
    for split in SPLITS:
        for task in made.draw(split, 12):
            source = (tmp_path / "made" / "alfworld" / "games" / task.data["game"]).parent
            shutil.copytree(source, tmp_path / "data" / "json_2.1.1" / split / task.id)
    return tmp_path / "data"


def test_official_data_are_taken_from_the_configuration_or_the_environment(official, tmp_path, monkeypatch):
    manifest = family(tmp_path, data=str(official), eval_tasks=50).manifest()
    assert {task.split for task in manifest.train} == {"train"}
    assert len(manifest.evaluation) == 12  # no more than there are
    assert [task.kind for task in manifest.train[:6]] == list(KINDS)
    assert all((official / task.data["game"]).is_file() for task in manifest.train)
    assert {task.split for task in family(tmp_path, data=str(official)).draw("valid_seen", 3)} == {
        "valid_seen"
    }
    monkeypatch.setenv("ALFWORLD_DATA", str(official))
    assert family(tmp_path, eval_tasks=50).manifest() == manifest


def test_official_panels_are_every_solvable_game_whatever_the_settings(official, tmp_path):
    doomed = next((official / "json_2.1.1" / "valid_seen").glob("pick_heat*/*/game.tw-pddl"))
    doomed.write_text(json.dumps({**json.loads(doomed.read_text()), "solvable": False}))
    one = family(tmp_path, data=str(official), eval_tasks=2, kinds=["pick_and_place_simple"])
    other = family(tmp_path, data=str(official), seed=7)
    names = ["evaluation", "training", "alfworld/valid_seen", "alfworld/valid_unseen"]
    assert list(one.panels()) == names
    for name, size in zip(names[2:], (11, 12), strict=True):
        tasks = one.panels()[name]()
        assert tasks == other.panels()[name]() and len(tasks) == size
        games = [task.data["game"] for task in tasks]
        assert games == sorted(games) and str(doomed.relative_to(official)) not in games
        assert {f"alfworld/{task.split}" for task in tasks} == {name}


def test_generated_panels_are_of_the_rooms_of_training_and_of_others(tmp_path):
    made = family(tmp_path)
    panels = {name: listing() for name, listing in made.panels().items()}
    assert panels.keys() == {"evaluation", "training", "seen", "unseen"}
    assert panels["unseen"] == panels["evaluation"]
    assert {task.split for task in panels["seen"]} == {"valid_seen"} and len(panels["seen"]) == 6
    assert not {task.id for task in panels["seen"]} & {task.id for task in made.manifest().train}


def test_unsolvable_official_games_are_left_out(official, tmp_path):
    doomed = next((official / "json_2.1.1" / "train").glob("pick_heat*/*/game.tw-pddl"))
    doomed.write_text(json.dumps({**json.loads(doomed.read_text()), "solvable": False}))
    games = [task.data["game"] for task in family(tmp_path, data=str(official)).manifest().train]
    assert len(games) == 11
    assert str(doomed.relative_to(official)) not in games


def test_missing_data_say_how_to_get_them(official, tmp_path, monkeypatch):
    with pytest.raises(DataMissing, match="alfworld-download"):
        family(tmp_path, data=str(tmp_path / "nowhere"))
    monkeypatch.setenv("ALFWORLD_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(DataMissing, match="alfworld-download"):
        family(tmp_path)
    shutil.rmtree(official / "json_2.1.1" / "valid_unseen")
    with pytest.raises(DataMissing, match=r"valid_unseen.*alfworld-download"):
        family(tmp_path, data=str(official)).manifest()


def test_the_folder_that_importing_alfworld_names_is_not_taken_for_the_users(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("ALFWORLD_DATA", str(tmp_path / ".cache" / "alfworld"))
    assert len(family(tmp_path).draw("train", 6)) == 6
