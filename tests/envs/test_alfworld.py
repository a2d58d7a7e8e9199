"""ALFWorld episodes: against upstream's own environment, by reference solutions and by both players."""

import json
import random
import shutil
import subprocess
import sys
import zlib

import pytest

from hindsight.configs.schema import Env
from hindsight.envs.alfworld.env import AlfworldFamily
from hindsight.envs.alfworld.games import KINDS
from hindsight.envs.base import EnvError
from hindsight.envs.drawing import draw_turn
from hindsight.envs.tasks import TaskSpec

UPSTREAM = """
import json, sys
folder, plans = sys.argv[1], json.load(open(sys.argv[2]))
if sys.version_info >= (3, 13):  # where upstream's grammar fails with a NameError
    from hindsight.envs.alfworld.fast_textworld import _evaluate
    from textworld.envs.pddl import textgen
    textgen.EvalSymbol.derive = _evaluate
from alfworld.agents.environment import get_environment
paths = {"data_path": folder, "eval_id_data_path": folder, "eval_ood_data_path": folder}
config = {
    "env": {"goal_desc_human_anns_prob": 0, "task_types": [1, 2, 3, 4, 5, 6], "domain_randomization": False,
            "expert_type": "planner"},
    "general": {"training_method": "dqn"},
    "rl": {"training": {"max_nb_steps_per_episode": 50}},
    "dataset": {**paths, "num_train_games": -1, "num_eval_games": -1},
}
env = get_environment("AlfredTWEnv")(config, train_eval="train").init_env(batch_size=1)
record = {}
for _ in plans:
    texts, infos = env.reset()
    game = infos["extra.gamefile"][0][len(folder) + 1:]
    steps = record[game] = [[texts[0], infos["admissible_commands"][0], 0, False]]
    for action in plans[game]:
        texts, scores, dones, infos = env.step([action])
        steps.append([texts[0], infos["admissible_commands"][0], scores[0], dones[0]])
env.close()
json.dump(record, sys.__stdout__)
"""


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("ALFWORLD_DATA", raising=False)
        return AlfworldFamily(Env(train_tasks=12, eval_tasks=6), tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def tasks(family):
    manifest = family.manifest()
    return (*manifest.train, *manifest.evaluation)


@pytest.fixture(scope="module")
def env(family):
    env = family.make()
    yield env
    env.close()


@pytest.fixture(scope="module")
def small(family, tasks):
    """The tasks whose games are smallest, and so fastest, first."""
    return sorted(tasks, key=lambda task: (family._root / task.data["game"]).stat().st_size)


def test_reference_solutions_win_all_six_kinds_by_admissible_actions(env, tasks):
    won = set()
    for task in tasks:
        observation = env.reset(task)
        solution = env.reference(task)
        for number, action in enumerate(solution, start=1):
            assert action in observation.actions
            result = env.step(action)
            observation = result.observation
            last = number == len(solution)
            assert (result.terminated, result.success, result.reward) == (last, last, float(last))
        won.add(task.kind)
    assert won == set(KINDS)


def test_places_of_an_episode_are_drawn_as_rooms(env, small):
    seen = [env.reset(small[0]).text]
    seen += [env.step(action).observation.text for action in env.reference(small[0])]
    places = [text for text in seen if "you see" in text or "is closed" in text]
    assert len(places) > 1
    assert all("room" in {block["kind"] for block in draw_turn("alfworld", text, "", "")} for text in places)


def test_every_step_equals_upstreams(env, family, small, tmp_path):
    plans, ours = {}, {}
    rng = random.Random(0)
    for number, task in enumerate(small[:4]):
        game = task.data["game"].partition("/")[2]
        shutil.copytree((family._root / task.data["game"]).parent, tmp_path / "games" / task.id)
        observation = env.reset(task)
        steps = ours[game] = [[observation.text, observation.actions, 0, False]]
        plans[game] = []
        solution = env.reference(task)
        for turn in range(len(solution) if number < 2 else 10):
            action = (
                solution[turn]
                if number < 2
                else "fly to the moon"
                if turn == 5
                else rng.choice(observation.actions)
            )
            result = env.step(action)
            observation = result.observation
            plans[game].append(action)
            steps.append([result.feedback, observation.actions, result.reward, result.terminated])
    (tmp_path / "plans.json").write_text(json.dumps(plans))
    command = [sys.executable, "-c", UPSTREAM, str(tmp_path / "games"), str(tmp_path / "plans.json")]
    output = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout
    theirs = json.loads(output[output.rindex('{"') :])
    assert theirs.keys() == ours.keys()
    for game, steps in theirs.items():
        for (text, actions, score, done), (our_text, our_actions, reward, terminated) in zip(
            steps, ours[game], strict=True
        ):
            assert text == our_text
            assert [action for action in actions if action != "help"] == list(our_actions)
            assert (score, done) == (reward, terminated)
    assert [steps[-1][3] for steps in ours.values()][:2] == [True, True]


def test_an_inadmissible_action_changes_nothing(env, small):
    before = env.reset(small[0])
    result = env.step("open the sky")
    assert result.feedback == result.observation.text == "Nothing happens."
    assert (result.reward, result.terminated, result.truncated, result.success) == (0.0, False, False, False)
    assert result.observation.actions == before.actions
    assert "help" not in before.actions
    assert before.state_key == before.text


def test_the_goal_is_the_first_observations_last_line(env, small):
    first = env.reset(small[0])
    assert first.goal.startswith("Your task is to: ") and first.text.rstrip().endswith(first.goal)
    assert env.step("look").observation.goal == first.goal


def test_the_same_task_starts_the_same_again(env, small):
    first = env.reset(small[0])
    env.step(first.actions[0])
    env.reset(small[1])
    assert env.reset(small[0]) == first == env.reset(small[0])


def test_the_turn_limit_truncates_and_a_step_after_the_end_is_an_error(env, small, monkeypatch):
    monkeypatch.setattr(env, "max_turns", 3)
    env.reset(small[0])
    results = [env.step("look") for _ in range(3)]
    assert [result.truncated for result in results] == [False, False, True]
    assert not any(result.terminated or result.success for result in results)
    with pytest.raises(EnvError, match="reset"):
        env.step("look")
    env.reset(small[0])
    env.step("look")


def test_a_win_on_the_last_turn_is_a_win(env, small, monkeypatch):
    solution = env.reference(small[0])
    monkeypatch.setattr(env, "max_turns", len(solution))
    env.reset(small[0])
    result = [env.step(action) for action in solution][-1]
    assert (result.success, result.terminated, result.truncated) == (True, True, False)
    with pytest.raises(EnvError, match="reset"):
        env.step("look")


def test_a_game_that_is_not_there_is_an_error_and_spares_the_next(env, small):
    with pytest.raises(EnvError, match="lost"):
        env.reset(TaskSpec("lost", "alfworld", KINDS[0], "train", {"game": "lost/game.tw-pddl"}))
    with pytest.raises(EnvError, match="reset"):
        env.step("look")
    assert env.reset(small[0]).actions


def test_a_damaged_translation_is_named(env, family, small):
    from hindsight.envs.alfworld.fast_textworld import translation

    path = max((family._cache / "translations").glob("*/*.json.z"), key=lambda path: path.stat().st_mtime)
    kept = path.read_bytes()
    try:
        for file in (family._cache / "translations").glob("*/*.json.z"):
            if file == path:
                file.write_bytes(kept[:100])
        translation.cache_clear()
        damaged = []
        for task in small:
            data = json.loads((family._root / task.data["game"]).read_text())
            try:
                translation(data["pddl_domain"], data["pddl_problem"])
            except EnvError as error:
                damaged.append(str(error))
        assert len(damaged) == 1
        assert str(path) in damaged[0]
    finally:
        path.write_bytes(kept)


def test_translations_are_kept_on_disk_and_leave_the_command_line_alone(env, family, small):
    arguments = list(sys.argv)
    env.reset(small[0])
    files = list((family._cache / "translations").glob("*/*.json.z"))
    assert files
    assert "sas" in json.loads(zlib.decompress(files[0].read_bytes()))
    assert sys.argv == arguments
    assert [path for path in (family._cache / "translations").glob("*/*") if path not in files] == []


def test_upstreams_planner_goes_on_from_any_state(env, small):
    env.reset(small[0])
    env.step(env.reference(small[0])[0])
    state = env._env.unwrapped._pddl_state
    plan = state.replan(env._env.unwrapped._entity_infos)
    assert [env.step(action.strip()) for action in plan][-1].success


def test_the_searching_player_wins_nearly_always_and_its_steps_are_sound(env, tasks):
    demos = [env.demonstrate(task, 0, 0.0) for task in tasks]
    assert sum(demo.success for demo in demos) >= len(demos) - 1
    for demo in demos:
        assert demo.steps[0].observation == demo.first
        assert all(
            step.action == step.expert and step.action in step.observation.actions for step in demo.steps
        )
        assert demo.success == demo.steps[-1].result.success
        assert len(demo.steps) <= 50


def test_the_player_recovers_from_noise(env, tasks):
    demos = [env.demonstrate(task, 3, 0.2) for task in tasks]
    assert sum(demo.success for demo in demos) >= len(demos) - 2
    noisy = sum(step.action != step.expert for demo in demos for step in demo.steps)
    assert noisy / sum(len(demo.steps) for demo in demos) == pytest.approx(0.2, abs=0.1)
    assert demos[0] == env.demonstrate(tasks[0], 3, 0.2)


def test_upstreams_own_player_wins_two_of_a_kind(env, tasks, monkeypatch):
    monkeypatch.setattr(env, "_expert", "upstream")
    two = [task for task in tasks if task.kind == KINDS[5]]
    demos = [env.demonstrate(task, seed, 0.0) for task in two for seed in range(2)]
    assert sum(demo.success for demo in demos) >= len(demos) - 1
    others = [env.demonstrate(task, 0, 0.0).success for task in tasks if task.kind != KINDS[5]]
    assert sum(others) >= 0.8 * len(others)
