"""Entries of one's own at the five open places: how they are named, their settings, and clear errors."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hindsight.cluster.cli import app
from hindsight.configs import registry
from hindsight.configs.check import changed_settings, check_config, render
from hindsight.configs.load import ConfigError, load_config
from hindsight.configs.method import Credit
from hindsight.configs.registry import ADVANTAGES, REGISTRIES

CREDIT = '''
from dataclasses import dataclass
from hindsight.configs.method import Credit
from hindsight.configs.setting import setting, with_settings

@dataclass(frozen=True)
class Mine(Credit):
    my_scale: float = setting(1.0, "what returns are multiplied by", low=0.0, high=10.0)

    def problems(self, config):
        if self.my_scale == 7:
            yield "credit.my_scale = 7 brings bad luck: set it to 8"

@with_settings(Mine)
def scaled(group, credit):
    return [credit.my_scale * trajectory.reward for trajectory in group.trajectories]

def _hidden(group, credit):
    """No entry: its name is private."""
'''
TRACKERS_FILE = '''
from dataclasses import dataclass
from hindsight.cluster.trackers import Tracker
from hindsight.configs.schema import Tracking
from hindsight.configs.setting import setting

@dataclass(frozen=True)
class Listed(Tracking):
    list_length: int = setting(3, "rows to keep", low=1)

@dataclass(frozen=True)
class Named(Tracking):
    title: str = setting("run", "name of the run")

class List(Tracker):
    Settings = Listed
    def __init__(self, settings, folder):
        super().__init__(settings, folder)
        self.rows = []
    def write(self, step, kind, values, stage=None):
        self.rows = [*self.rows, (step, kind, dict(values))][-self.settings.list_length:]

class Name(Tracker):
    Settings = Named
    closed = False
    def write(self, step, kind, values, stage=None):
        with (self.folder / self.settings.title).open("a") as file:
            print(step, kind, file=file)
    def close(self):
        (self.folder / self.settings.title).open("a").write("closed")

class Both(Tracker):
    """Its settings extend those of another tracker."""
    @dataclass(frozen=True)
    class Settings(Listed):
        both: bool = setting(True, "whether it is both")
'''
SIGNAL = """
from dataclasses import dataclass
from hindsight.configs.method import Signal
from hindsight.configs.setting import setting
from hindsight.learner.signals import TeacherSignal

class Halved(TeacherSignal):
    @dataclass(frozen=True)
    class Settings(Signal):
        share: float = setting(0.5, "share of every advantage that is kept", low=0.0, high=1.0)

    def strength(self, step):
        return 1.0

    def shape(self, advantages, gap, strength):
        return self.settings.share * advantages
"""


@pytest.fixture(autouse=True)
def forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Modules and folders that a test made known are unknown to the next one."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(registry, "PLUGIN_FOLDERS", [])
    yield
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """Writes a file into the working directory."""
    monkeypatch.chdir(tmp_path)

    def write(name: str, text: str) -> Path:
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


def problem(*overrides: str) -> str:
    """The one line that is wrong, without "command line: "."""
    with pytest.raises(ConfigError) as caught:
        load_config(None, overrides)
    source, _, said = str(caught.value).partition(": ")
    assert source == "command line" and "\n" not in said
    return said


@pytest.mark.parametrize("name", ["own_credit:scaled", "{}/own_credit.py", "{}/own_credit.py:scaled"])
def test_an_entry_of_ones_own_is_a_module_or_a_file(file, tmp_path: Path, name: str) -> None:
    file("own_credit.py", CREDIT)
    name = name.format(tmp_path)
    config = load_config("nano", ["method=grpo", f"credit.advantage={name}", "credit.my_scale=2"])
    assert (config.credit.advantage, config.credit.my_scale) == (name, 2.0)
    assert (
        config.credit.success_reward == load_config("nano").credit.success_reward
    )  # the section's own settings stay
    assert check_config(config) == []
    assert ADVANTAGES.find(name).__name__ == "scaled"
    assert [str(tmp_path)] == registry.PLUGIN_FOLDERS  # which actors get on their path


@pytest.mark.parametrize("name", ["own_credit.py", "./own_credit.py", "~/own_credit.py"])
@pytest.mark.parametrize("attribute", ["", ":scaled"])
def test_a_file_is_named_from_here_or_from_home(file, monkeypatch, name: str, attribute: str) -> None:
    """The configuration holds its absolute path: actors work in other folders."""
    path = file("own_credit.py", CREDIT)
    monkeypatch.setenv("HOME", str(path.parent))
    assert load_config(None, [f"credit.advantage={name}{attribute}"]).credit.advantage == f"{path}{attribute}"


def test_a_recipe_names_a_file_beside_it(file, tmp_path: Path, monkeypatch) -> None:
    path, recipe = file("own_credit.py", CREDIT), file("own.yaml", "credit: {advantage: own_credit.py}\n")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load_config(recipe).credit.advantage == str(path)


def test_its_settings_are_checked_rendered_and_compared(file, tmp_path: Path) -> None:
    path = file("own_credit.py", CREDIT)
    named = f"credit.advantage={path}"
    assert problem(named, "credit.my_scal=2") == (
        "unknown setting 'credit.my_scal'. Did you mean 'credit.my_scale'?"
    )
    assert problem(named, "credit.my_scale=big") == (
        "credit.my_scale = 'big': expected a number >= 0 and <= 10"
    )
    assert check_config(load_config(None, [named, "credit.my_scale=11"])) == [
        "credit.my_scale = 11.0: expected a number >= 0 and <= 10"
    ]
    assert check_config(load_config(None, [named, "credit.my_scale=7"])) == [
        "credit.my_scale = 7 brings bad luck: set it to 8"
    ]
    assert problem("credit.my_scale=2").startswith("unknown setting 'credit.my_scale'. Did you mean ")
    config = load_config(None, [named, "credit.my_scale=2"])
    line = "  my_scale: 2.0  # what returns are multiplied by (a number >= 0 and <= 10)"
    assert line in render(config).splitlines()
    assert load_config(file("resolved.yaml", render(config))) == config
    before = render(load_config(None, [named]))
    assert changed_settings(before, config) == ["credit.my_scale: 1.0 → 2.0"]


def test_the_command_line_prints_its_settings(file) -> None:
    path = file("own_credit.py", CREDIT)
    arguments = ["config", "nano", "method=grpo", f"credit.advantage={path}", "credit.my_scale=2"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0 and "my_scale: 2.0" in done.output
    wrong = CliRunner().invoke(app, ["config", "nano", f"credit.advantage={path}", "credit.my_scale=99"])
    assert wrong.exit_code == 1 and "credit.my_scale = 99.0: expected a number" in wrong.output


def test_a_recipe_sets_what_its_entry_has_whichever_comes_first(file, tmp_path: Path) -> None:
    path = file("own_credit.py", CREDIT)
    recipe = file("own.yaml", f"base: base_cpu\ncredit:\n  my_scale: 3\n  advantage: {path}\n")
    assert load_config(recipe).credit.my_scale == 3.0
    child = file("child.yaml", "base: own.yaml\ncredit.my_scale: 4\n")
    assert load_config(child, ["env.name=webshop"]).credit.my_scale == 4.0
    # Another estimator drops what the recipe sets for its own one.
    assert load_config(child, ["credit.advantage=rloo"]).credit == Credit(advantage="rloo")


def test_a_teacher_signal_of_ones_own(file, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from hindsight.learner.signals import make_signal

    path = file("own_signal.py", SIGNAL)
    named = [f"signal.name={path}", "feedback.sources=[immediate]", "signal.share=0.25"]
    config = load_config(None, named)
    assert check_config(config) == [] and config.needs_teacher and config.signal.loss_weight == 0
    signal = make_signal(config.signal)
    assert signal.shape(torch.ones(2), torch.zeros(2), 1.0).tolist() == [0.25, 0.25]
    [missing] = check_config(load_config(None, named[:1]))
    assert missing.startswith(f"signal.name = {path} needs hints")


def test_two_trackers_at_once_each_with_its_settings(file, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from hindsight.cluster.metrics import Metrics

    path = file("own_trackers.py", TRACKERS_FILE)
    names = f"tracker.names=[{path}:List,{path}:Name]"
    assert problem(names, "tracker.list_lengt=2") == (
        "unknown setting 'tracker.list_lengt'. Did you mean 'tracker.list_length'?"
    )
    config = load_config(None, [names, "tracker.list_length=2", "tracker.title=second"])
    assert check_config(config) == [] and load_config(file("resolved.yaml", render(config))) == config
    metrics = Metrics(tmp_path / "run", config.tracker)
    metrics.start()
    for step in range(3):
        metrics.write(step, "train", {"a": float(step), "broken": float("nan")})
    assert metrics._trackers[0].rows == [(1, "train", {"a": 1.0}), (2, "train", {"a": 2.0})]
    metrics.close()
    assert (tmp_path / "run/second").read_text() == "0 train\n1 train\n2 train\nclosed"
    with_builtin = load_config(None, [f"tracker.names=[{path}:List,ray]"])
    assert with_builtin.tracker.list_length == 3 and not hasattr(with_builtin.tracker, "title")
    assert load_config(None, ["tracker.names=[]"]).tracker.names == []


@pytest.mark.parametrize("order", [("List", "Both"), ("Both", "List"), ("Both", "Name", "List")])
def test_settings_that_extend_each_other_are_one_section(file, order: tuple[str, ...]) -> None:
    path = file("own_trackers.py", TRACKERS_FILE)
    config = load_config(None, [f"tracker.names=[{','.join(f'{path}:{name}' for name in order)}]"])
    assert (config.tracker.list_length, config.tracker.both) == (3, True)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("env.name=alfword", "env.name = 'alfword' is unknown. Did you mean 'alfworld'? Use alfworld, "),
        ("env.name=3", "env.name = '3' is unknown. "),
        ("tracker.names=[3]", "tracker.names = '3' is unknown. "),
        ("credit.advantage=''", "credit.advantage = '' is unknown. "),
        (
            "credit.advantage=ghost:est",
            "credit.advantage = 'ghost:est': cannot import ghost: ModuleNotFoundError: No module",
        ),
        ("credit.advantage=math:ghost", "credit.advantage = 'math:ghost': math has no attribute 'ghost'"),
        ("credit.advantage=math:pi", "credit.advantage = 'math:pi': pi is not a function"),
        ("credit.advantage=ghost.py", "credit.advantage = 'ghost.py': there is no file ghost.py"),
        ("signal.name=ghost.py:A", "signal.name = 'ghost.py:A': there is no file ghost.py"),
        (
            "signal.name=pathlib:Path",
            "signal.name = 'pathlib:Path': Path is not a subclass of hind",
        ),
        (
            "feedback.sources=[math:sqrt]",
            "feedback.sources = 'math:sqrt': sqrt is not a subclass of hindsight.",
        ),
        ("tracker.names=[ray,pathlib:Path]", "tracker.names = 'pathlib:Path': Path is not a subclass of "),
        (
            "env.name=pathlib:Path",
            "env.name = 'pathlib:Path': Path is not a subclass of hindsight.",
        ),
        (
            "env.name=empty.py",
            "env.name = 'empty.py': expected exactly one environment, which ",
        ),
        (
            "credit.advantage=syn.py",
            "credit.advantage = 'syn.py': cannot import syn: SyntaxError: invalid syntax (syn.py, ",
        ),
        ("credit.advantage=two.py", "credit.advantage = 'two.py': expected exactly one advantage estimator"),
        (
            "credit.advantage=needs.py",
            "credit.advantage = 'needs.py': cannot import needs: ModuleNotFoundError: No module",
        ),
        (
            "credit.advantage=odd.py",
            "credit.advantage = 'odd.py': its Settings must be a frozen dataclass that",
        ),
        (
            "credit.advantage=bare.py",
            "credit.advantage = 'bare.py': its Settings must be a frozen dataclass that",
        ),
        ("credit.advantage=json.py", "credit.advantage = 'json.py': another module is already called json "),
    ],
)
def test_a_name_that_leads_nowhere_gives_one_clear_line(
    file, tmp_path: Path, override: str, said: str
) -> None:
    file("empty.py", "")
    file("two.py", "def one(group, credit): ...\ndef two(group, credit): ...\n")
    file("syn.py", "def (:\n")
    file("needs.py", "import a_package_that_is_not_there\n")
    file("odd.py", "class Settings: ...\ndef est(group, credit): ...\nest.Settings = Settings\n")
    file(
        "bare.py",  # without the decorator
        "from hindsight.configs.method import Credit\nclass Settings(Credit):\n    scale: float = 2.0\n"
        "def est(group, credit): ...\nest.Settings = Settings\n",
    )
    file("json.py", "def est(group, credit): ...\n")
    assert problem(override).replace(f"{tmp_path}/", "").startswith(said)


def test_the_file_of_several_entries_tells_how_to_name_one(file) -> None:
    path = file("two.py", "def one(group, credit): ...\ndef two(group, credit): ...\n")
    said = problem("credit.advantage=two.py")
    assert said.endswith(f"the file has one, two. Name one as {path}:NAME")
    assert load_config(None, ["credit.advantage=two.py:two"]).credit.advantage == f"{path}:two"


ODD = """
from dataclasses import dataclass
from hindsight.configs.setting import setting
from hindsight.envs.taubench.env import TauFamily
from hindsight.envs.taubench.settings import TauSettings

class Moody(TauFamily):
    @dataclass(frozen=True)
    class Settings(TauSettings):
        mood: str = "calm"
        odds: list[float] = setting([0.5], "of a bad day")
"""


def test_settings_may_follow_a_nested_section_and_have_any_type(file) -> None:
    path = file("odd_env.py", ODD)
    config = load_config(
        None, [f"env.name={path}:Moody", "env.mood=angry", "env.odds=[1]", "env.user.source=engine"]
    )
    assert load_config(file("resolved.yaml", render(config))) == config
    assert (config.env.mood, config.env.odds, config.env.served_model) == ("angry", [1.0], "")
    assert problem(f"env.name={path}:Moody", "env.odds=[a]") == "env.odds = ['a']: expected list[float]"


@pytest.mark.parametrize("section", REGISTRIES)
def test_every_built_in_entry_can_be_found(section: str) -> None:
    pytest.importorskip("gymnasium")
    for name in REGISTRIES[section].installed:
        assert REGISTRIES[section].find(name) is REGISTRIES[section].find(REGISTRIES[section].builtin[name])


def test_the_built_in_entries_are_on_no_path() -> None:
    load_config("taubench", ["tracker.names=[ray]"])
    assert not registry.PLUGIN_FOLDERS
