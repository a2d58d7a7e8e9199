"""Interpreters of environments: made once, or not at all."""

from __future__ import annotations

import subprocess

import pytest

from hindsight.envs.base import DataMissing, EnvError
from hindsight.envs.runtime import interpreters as module
from hindsight.envs.runtime.interpreters import install_interpreter, interpreter


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """An environment whose interpreter has no packages."""
    listed = tmp_path / "environments" / "appworld" / "requirements.txt"
    listed.parent.mkdir(parents=True)
    listed.write_text("# nothing\n")
    monkeypatch.setattr(module, "HERE", tmp_path / "environments")

    def steps(code):
        monkeypatch.setattr(module, "STEPS", {"appworld": (("-c", code, "{packages}"),)})

    return listed, steps


def test_an_interpreter_is_made_once_and_anew_for_another_list(tmp_path, tiny):
    listed, steps = tiny
    steps("import sys, pathlib; pathlib.Path(sys.argv[1], 'stepped.py').write_text('')")
    told: list[str] = []
    with pytest.raises(DataMissing, match=r"^run `hindsight envs install appworld`$"):
        interpreter("appworld", tmp_path)
    python = install_interpreter("appworld", tmp_path, told.append)
    assert python == interpreter("appworld", tmp_path)
    subprocess.run([python, "-I", "-c", "import stepped"], check=True)
    assert told[0].startswith("installing appworld into ")
    assert len(told) == 5
    again: list[str] = []
    assert install_interpreter("appworld", tmp_path, again.append) == python
    assert again == [f"appworld is installed in {python.parent.parent}"]
    listed.write_text("# another list\n")
    with pytest.raises(DataMissing):
        interpreter("appworld", tmp_path)


def test_a_broken_install_leaves_nothing_and_is_redone(tmp_path, tiny):
    _, steps = tiny
    steps("print('what went wrong'); raise SystemExit(3)")
    with pytest.raises(EnvError, match=r"(?s)failed \(3\).*what went wrong"):
        install_interpreter("appworld", tmp_path, lambda line: None)
    assert list((tmp_path / "interpreters").iterdir()) == []
    steps("pass")
    assert install_interpreter("appworld", tmp_path, lambda line: None).exists()


def test_other_names(tmp_path, capsys):
    assert install_interpreter("alfworld", tmp_path) is None
    assert capsys.readouterr().out == "alfworld comes with the main environment: nothing to install\n"
    with pytest.raises(ValueError, match="'chess' is not an environment; choose one of alfworld"):
        install_interpreter("chess", tmp_path)
    assert list(tmp_path.iterdir()) == []
