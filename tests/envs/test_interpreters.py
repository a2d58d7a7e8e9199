"""Interpreters of environments: made once, whole or not at all."""

from __future__ import annotations

import subprocess

import pytest

from hindsight.envs.base import DataMissing, EnvError
from hindsight.envs.runtime import interpreters as module
from hindsight.envs.runtime.interpreters import install, interpreter, made_once


def test_what_is_made_is_whole_or_not_there(tmp_path):
    folder = tmp_path / "deep" / "made"

    def fail(draft):
        (draft / "half").touch()
        raise EnvError("no more")

    with pytest.raises(EnvError, match="no more"):
        made_once(folder, fail)
    assert list(folder.parent.iterdir()) == []
    made_once(folder, lambda draft: (draft / "whole").touch())
    made_once(folder, fail)  # not asked again
    assert [path.name for path in folder.iterdir()] == ["whole"]
    assert folder.stat().st_mode & 0o777 == 0o755


def test_whoever_is_first_wins(tmp_path):
    folder = tmp_path / "made"

    def late(draft):
        (draft / "late").touch()
        made_once(folder, lambda other: (other / "early").touch())

    made_once(folder, late)
    assert [path.name for path in folder.iterdir()] == ["early"]
    assert list(tmp_path.iterdir()) == [folder]


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """An environment whose interpreter has no packages."""
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "appworld.txt").write_text("# nothing\n")
    monkeypatch.setattr(module, "LISTS", lists)

    def steps(code):
        monkeypatch.setattr(module, "STEPS", {"appworld": (("-c", code, "{packages}"),)})

    return lists, steps


def test_an_interpreter_is_made_once_and_anew_for_another_list(tmp_path, tiny):
    lists, steps = tiny
    steps("import sys, pathlib; pathlib.Path(sys.argv[1], 'stepped.py').write_text('')")
    told: list[str] = []
    with pytest.raises(DataMissing, match=r"^run `hindsight envs install appworld`$"):
        interpreter("appworld", tmp_path)
    python = install("appworld", tmp_path, told.append)
    assert python == interpreter("appworld", tmp_path)
    subprocess.run([python, "-I", "-c", "import stepped"], check=True)
    assert told[0].startswith("installing appworld into ")
    assert len(told) == 5
    again: list[str] = []
    assert install("appworld", tmp_path, again.append) == python
    assert again == [f"appworld is installed in {python.parent.parent}"]
    (lists / "appworld.txt").write_text("# another list\n")
    with pytest.raises(DataMissing):
        interpreter("appworld", tmp_path)


def test_a_broken_install_leaves_nothing_and_is_redone(tmp_path, tiny):
    _, steps = tiny
    steps("print('what went wrong'); raise SystemExit(3)")
    with pytest.raises(EnvError, match=r"(?s)failed \(3\).*what went wrong"):
        install("appworld", tmp_path, lambda line: None)
    assert list((tmp_path / "interpreters").iterdir()) == []
    steps("pass")
    assert install("appworld", tmp_path, lambda line: None).exists()


def test_other_names(tmp_path, capsys):
    assert install("alfworld", tmp_path) is None
    assert capsys.readouterr().out == "alfworld comes with the main environment: nothing to install\n"
    with pytest.raises(ValueError, match="'chess' is not an environment; choose one of alfworld"):
        install("chess", tmp_path)
    assert list(tmp_path.iterdir()) == []
