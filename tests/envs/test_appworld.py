"""AppWorld: solved tasks, honest verdicts, and an agent whose code is shut in."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from isolation import sandbox

from hindsight.configs.paths import cache_root
from hindsight.envs.appworld.env import KINDS, AppWorldFamily, AppWorldSettings
from hindsight.envs.base import DataMissing, EnvError
from hindsight.envs.runtime.interpreters import install_interpreter, interpreter
from hindsight.envs.tasks import TaskSpec

# A busy machine's patience.
CONFIG = AppWorldSettings(
    name="appworld", max_turns=40, step_timeout=120, reset_timeout=300, sandbox=sandbox()
)
PROJECT = Path(__file__).resolve().parent.parent.parent
DONE = "apis.supervisor.complete_task()"
# Upstream's environment and its own verdict, in one process, without any of our parts.
UPSTREAM = """
import json, sys
from appworld import AppWorld, update_root
update_root(sys.argv[1])
verdicts = []
for number, (task, pieces) in enumerate(json.load(open(sys.argv[2]))):
    with AppWorld(task, "upstream") as world:
        for piece in pieces:
            world.execute(piece)
        verdicts.append(world.evaluate().to_dict())
json.dump(verdicts, open(sys.argv[3], "w"))
"""


@pytest.fixture(scope="module")
def python():
    install_interpreter("appworld")
    return interpreter("appworld", cache_root())


@pytest.fixture(scope="module")
def family(python):
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("APPWORLD_ROOT", raising=False)
        patch.setenv("OPENAI_API_KEY", "a secret")  # of the owner, who starts the server below
        yield AppWorldFamily(CONFIG, cache_root())


@pytest.fixture(scope="module")
def env(family):
    env = family.make()
    yield env
    env.close()


@pytest.fixture(scope="module")
def tasks(family):
    """One task of each generator from both splits."""
    manifest = family.manifest()
    return [
        task
        for split in (manifest.train, manifest.evaluation)
        for task in {task.id.partition("_")[0]: task for task in split}.values()
    ]


def play(env, task, pieces):
    env.reset(task)
    return [env.step(piece) for piece in pieces]


def test_the_manifest_is_drawn_from_two_disjoint_splits(family):
    manifest = family.manifest()
    train, evaluation = ({task.id for task in split} for split in (manifest.train, manifest.evaluation))
    assert (len(train), len(evaluation)) == (54, 27)
    assert not train & evaluation
    assert len({name.partition("_")[0] for name in train}) == 9
    assert {task.kind for task in manifest.train} == set(KINDS)
    assert pickle.loads(pickle.dumps(family)).manifest().digest == manifest.digest

    def other(**changes):
        return AppWorldFamily(replace(CONFIG, **changes), cache_root()).manifest()

    few = other(train_tasks=5, eval_tasks=3)
    assert (few.train, few.evaluation) == (manifest.train[:5], manifest.evaluation[:3])
    assert other(seed=1).digest != manifest.digest
    assert {task.kind for task in other(kinds=["difficulty_2"]).train} == {"difficulty_2"}


def test_an_episode_that_is_cut_is_judged_by_its_databases(env, tasks):
    env.reset(tasks[0])
    early = env.finish()
    assert (early.success, early.reward) == (False, 0.0) and early.info["failures"]
    assert early.info["share"] == len(early.info["passes"]) / sum(
        len(early.info[key]) for key in ("passes", "failures")
    )
    for ended in (lambda: env.step(DONE), env.finish):
        with pytest.raises(EnvError, match="reset first"):
            ended()
    shares = []
    for task in tasks:  # all but the last word of each solution
        *pieces, last = env.reference(task)
        play(env, task, [*pieces, last.replace("apis.supervisor.complete_task", "(lambda *a, **k: None)")])
        shares.append(env.finish().info["share"])
    assert max(shares) > early.info["share"]


def test_every_generators_reference_wins_turn_by_turn_and_in_its_last_turn(env, tasks):
    for task in tasks:
        pieces = env.reference(task)
        assert len(pieces) >= 3
        first = env.reset(task)
        assert "complete_task" in first.rules
        assert "show_api_doc" in first.rules
        assert first.text
        results = [env.step(piece) for piece in pieces]
        assert [result.terminated for result in results] == [False] * (len(pieces) - 1) + [True], task.id
        assert not any(result.truncated for result in results)
        assert not any(result.feedback.startswith("Execution failed") for result in results)
        assert (results[-1].success, results[-1].reward, results[-1].info["share"]) == (True, 1.0, 1.0)
        assert results[-1].info["failures"] == []
        with pytest.raises(EnvError, match="reset"):
            env.step("1")


def test_doing_nothing_never_wins_and_the_failures_say_what_was_asked(env, tasks):
    for task in tasks[:9]:
        (result,) = play(env, task, [DONE])
        assert (result.terminated, result.success, result.reward) == (True, False, 0.0), task.id
        assert 0 < result.info["share"] < 1
        for failure in result.info["failures"]:
            assert failure["requirement"]
            assert "assert" in failure["trace"].lower()


def test_the_verdicts_are_upstreams_own(env, tasks, family, python, tmp_path):
    by_name = {task.id.partition("_")[0]: task for task in tasks}
    append, count, alarms = (by_name[f"mini-{name}"] for name in ("note-append", "todo-count", "alarms-off"))
    solved = env.reference(append)
    extra = solved[1] + "\napis.simple_note.create_note(access_token=token, title='mine', content='x')"
    plays = [
        (append, solved),
        (append, [extra, *solved[2:]]),  # the note as asked, and another
        (count, ["apis.supervisor.complete_task(answer=-1)"]),
        (alarms, [*env.reference(alarms)[:-1], DONE]),
    ]
    ours = []
    for task, pieces in plays:
        info = play(env, task, pieces)[-1].info
        ours.append((info["passes"], info["failures"]))
    (tmp_path / "data").symlink_to(family.root / "data")
    (tmp_path / "plays.json").write_text(json.dumps([(task.id, pieces) for task, pieces in plays]))
    arguments = [str(tmp_path), str(tmp_path / "plays.json"), str(tmp_path / "verdicts.json")]
    subprocess.run([python, "-I", "-c", UPSTREAM, *arguments], check=True, cwd=tmp_path, timeout=300)
    theirs = json.loads((tmp_path / "verdicts.json").read_text())
    assert [(verdict["passes"], verdict["failures"]) for verdict in theirs] == ours
    assert [len(failures) for _, failures in ours] == [0, 1, 1, 1]


def test_the_turn_limit_truncates_and_the_state_gets_its_honest_share(env, tasks, monkeypatch):
    task = next(task for task in tasks if task.id.startswith("mini-note-append"))
    pieces = [piece.replace(DONE, "") for piece in env.reference(task)]
    monkeypatch.setattr(env, "max_turns", len(pieces))
    result = play(env, task, pieces)[-1]
    assert (result.truncated, result.terminated, result.success) == (True, False, False)
    assert result.info["share"] == pytest.approx(2 / 3)  # all is as asked but that it was not said to be done
    with pytest.raises(EnvError, match="reset"):
        env.step("1")


def test_what_the_agent_is_told(env, tasks):
    env.reset(tasks[0])
    assert env.step("x = 20 + 1").feedback == "Execution successful."
    result = env.step("print(2 * x)")
    assert (result.feedback, result.observation.text, result.reward) == ("42\n", "42\n", 0.0)
    assert result.observation.state_key == env.step("print(2 * x)").observation.state_key
    assert "ZeroDivisionError" in env.step("1/0").feedback
    assert "was never closed" in env.step("print(").feedback
    assert "not allowed: subprocess" in env.step("import subprocess").feedback
    assert "No app named 'nope' found" in env.step("apis.nope.look()").feedback
    assert "status code is 401" in env.step("apis.simple_note.search_notes(access_token='x')").feedback
    assert "422" in env.step("apis.simple_note.login()").feedback
    long = env.step("print('a' * 100_000)").feedback
    assert len(long) < 21_000
    assert "80001 characters left out" in long
    assert not env.step("print(x)").terminated


HARD = [
    *("", "\0", "\ud800", "(" * 5000, "-" * 100_000 + "1", "input()", "del apis", "exit()"),
    *("raise KeyboardInterrupt", "raise SystemExit", "class A(BaseException): pass\nraise A"),
    *("x = [0] * 10**11", "def f(): f()\nf()"),
]


@pytest.mark.parametrize("code", HARD, ids=range(len(HARD)))
def test_hard_code_is_answered_and_the_episode_goes_on(env, tasks, code):
    env.reset(tasks[0])
    assert isinstance(env.step(code).feedback, str)
    assert env.step("print(1 + 1)").feedback == "2\n"


def test_half_a_character_in_an_output_is_replaced(env, tasks):
    env.reset(tasks[0])
    said = env.step("class A(BaseException): pass\nraise A('\\ud800!')").observation.text
    assert said.endswith("A: ?!")


@settings(max_examples=25)
@given(st.text())
def test_any_text_is_answered(env, tasks, code):
    if not env.playing:
        env.reset(tasks[0])
        env.turns = -1000
    result = env.step(code)
    assert isinstance(result.feedback, str)
    assert not result.success


def test_the_agent_cannot_reach_the_verdict(env, tasks):
    hack = "import appworld\nappworld.evaluator.TestTracker.success = property(lambda self: True)\nprint(1)"
    results = play(env, tasks[0], [hack, DONE])
    assert results[0].feedback == "1\n"
    assert not results[1].success
    look = "import appworld\nprint(appworld.evaluator.TestTracker.success.fget.__name__)"
    assert play(env, tasks[0], [look])[0].feedback == "success\n"  # the next episode's interpreter is another


def test_code_that_ends_its_own_interpreter_loses_the_episode(env, tasks):
    (result,) = play(env, tasks[0], ["__import__('ctypes').string_at(0)"])
    assert (result.terminated, result.success, result.reward) == (True, False, 0.0)
    assert "session has ended" in result.feedback
    assert result.info["lost"]
    assert play(env, tasks[0], ["print(1)"])[0].feedback == "1\n"


def test_code_that_breaks_its_own_interpreter_does_not_reach_the_databases(env, tasks):
    for sabotage in (
        "__import__('pathlib').Path.iterdir = None",
        "__import__('pathlib').Path.read_text = lambda self: 'DROP TABLE; nonsense'",
        "__import__('appworld').apps.api_lib.save_local_dbs = None",
    ):
        assert play(env, tasks[0], [sabotage, *env.reference(tasks[0])])[-1].success, sabotage


def test_a_task_that_is_not_there_is_an_error_and_spares_the_next(env, tasks):
    for name in ("mini-lost_1", "../../etc", "mini-note-count_1/ground_truth", ""):
        with pytest.raises(EnvError):
            env.reset(TaskSpec(name, "appworld", KINDS[0], "train"))
        with pytest.raises(EnvError, match="reset"):
            env.step("1")
    assert env.reset(tasks[0]).text


def test_official_data_are_found_and_played_in_their_own_layout(env, family, tasks, tmp_path, monkeypatch):
    data = tmp_path / "official" / "data"
    for name in ("api_docs", "base_dbs"):
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).symlink_to(family.root / "data" / name)
    chosen = {"train": tasks[0], "test_normal": tasks[-1]}
    (data / "datasets").mkdir()
    for split, task in chosen.items():
        shutil.copytree(family.root / "data" / "tasks" / task.id, data / "tasks" / task.id)
        (data / "datasets" / f"{split}.txt").write_text(f"{task.id}\n")
    truth = data / "tasks" / tasks[0].id / "ground_truth"
    solution = truth / "compiled_solution.py"
    solution.write_text(solution.read_text().replace("# next turn", "pass"))  # official ones are in one piece
    (data / "tasks" / tasks[-1].id / "ground_truth" / "compiled_solution.py").unlink()  # as in the test sets

    official = AppWorldFamily(replace(CONFIG, data=str(data.parent)), cache_root())
    manifest = official.manifest()
    assert [task.id for task in (*manifest.train, *manifest.evaluation)] == [tasks[0].id, tasks[-1].id]
    names = [f"appworld/{split}" for split in ("dev", "test_normal", "test_challenge")]
    everywhere = ["evaluation", "training"]
    assert list(official.panels()) == [*everywhere, *names] and list(family.panels()) == everywhere
    assert [task.id for task in official.panels()["appworld/test_normal"]()] == [tasks[-1].id]
    with pytest.raises(DataMissing, match=r"dev\.txt is not there"):
        official.panels()["appworld/dev"]()
    assert manifest.train[0].data != tasks[0].data  # another digest for other content
    monkeypatch.setenv("APPWORLD_ROOT", str(data.parent))
    assert AppWorldFamily(CONFIG, cache_root()).manifest() == manifest
    monkeypatch.setattr(env, "_root", data.parent)  # for the solutions; the server keeps its own
    assert env.reference(tasks[-1]) is None
    pieces = env.reference(tasks[0])
    assert len(pieces) == 1
    assert play(env, tasks[0], pieces)[-1].success


def test_what_is_missing_is_said_with_its_remedy(python, tmp_path, monkeypatch):
    monkeypatch.delenv("APPWORLD_ROOT", raising=False)
    for call in ("manifest", "make"):
        with pytest.raises(DataMissing, match=r"^run `hindsight envs install appworld`$"):
            getattr(AppWorldFamily(CONFIG, tmp_path), call)()
    with pytest.raises(DataMissing, match="appworld download data"):
        AppWorldFamily(replace(CONFIG, data=str(tmp_path)), tmp_path)
    (tmp_path / "data" / "tasks").mkdir(parents=True)
    with pytest.raises(DataMissing, match=r"train\.txt is not there"):
        AppWorldFamily(replace(CONFIG, data=str(tmp_path)), cache_root()).manifest()
    with pytest.raises(
        ValueError, match=r"env\.kinds = \['easy'\].*difficulty_1, difficulty_2, difficulty_3"
    ):
        AppWorldFamily(replace(CONFIG, kinds=["easy"]), tmp_path)


def test_nothing_of_appworld_is_in_the_project(python, family):
    program = "from appworld.common.constants import CANARY_STRING; print(CANARY_STRING.split(':')[1])"
    said = subprocess.run([python, "-I", "-c", program], check=True, capture_output=True, text=True).stdout
    canary = said.strip()
    assert len(canary) > 5
    unpacked = next(python.parent.parent.glob("lib/*/site-packages/appworld/apps/todoist/apis.py"))
    assert canary in unpacked.read_text()
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    files = subprocess.run(listed, cwd=PROJECT, check=True, capture_output=True, text=True).stdout.split("\0")
    assert "envs/appworld/env.py" in files
    paths = [PROJECT / name for name in files if (PROJECT / name).is_file()]
    assert [path for path in paths if canary.encode() in path.read_bytes()] == []
    for made in (python, family.root):
        if made.is_relative_to(PROJECT):  # git ignores it, and no package holds it
            assert subprocess.run(["git", "check-ignore", "-q", str(made)], cwd=PROJECT).returncode == 0
            assert not made.is_relative_to(PROJECT / "envs")
