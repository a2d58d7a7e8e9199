"""The documents of `hindsight view`, and what its server and its export do with them."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
from starlette.testclient import TestClient
from toy_runs import HOSTILE, write_run, write_sparse_run

from hindsight.cluster.report.export import ExportError, export
from hindsight.cluster.report.pages import NoSuchPage, Pages, as_script, failures, settings_page
from hindsight.cluster.report.run_folder import RunFolder, RunFolderError
from hindsight.cluster.report.serve import PortTaken, application, listen
from hindsight.cluster.report.viewing import DEMO, ViewError, view_runs


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("toy"))


@pytest.fixture
def client(toy: Path) -> TestClient:
    app = application([("toy", Pages(RunFolder(toy)))], {"version": "1", "follow": False})
    return TestClient(app, base_url="http://127.0.0.1:7531")


def read(script: str) -> tuple[str, dict]:
    """The path and the document of a script."""
    path, text = json.loads(f"[{script.removeprefix('hindsight(').rstrip().removesuffix(')')}]")
    return path, json.loads(text)


def test_every_document_can_be_made(toy: Path) -> None:
    pages = Pages(RunFolder(toy))
    addresses = list(pages.addresses())
    kinds = [address[0] for address in addresses]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        "overview": 1, "settings": 1, "index": 5, "episode": 3 * 8 + 2 * 4, "tokens": 3 * 8, "timeline": 4,
    }  # fmt: skip
    for address in addresses:
        assert pages.document(*address)


def test_the_overview_says_where_the_run_stands(toy: Path) -> None:
    found = Pages(RunFolder(toy)).document("overview")
    assert found["train"]["step"] == [1, 2, 3]
    assert found["facts"]["method"] == "serl" and found["steps"] == 3
    assert [(row["stage"], row["low"], row["high"]) for row in found["evaluations"]] == [
        ("before warm start", 0.1, 0.7), ("after RL", 0.1, 0.7),
    ]  # fmt: skip
    assert found["starts"][0]["outcome"] == "finished"
    assert HOSTILE in found["set_aside"][0]["message"]


def test_failures_are_counted_once() -> None:
    """Counts of a step are added; kinds and restarts are running counts of the run."""
    first = {"failures/retried": 1.0, "failures/timeout": 2, "failures/total": 2}
    last = {
        "failures/retried": 2.0, "failures/timeout": 3, "failures/total": 3, "failures/lost": 0,
        "restarts/engine": 1.0, "restarts/engine_seconds": 40.0,
    }  # fmt: skip
    assert failures([first, last]) == {"failures/timeout": 3, "restarts/engine": 1.0, "failures/retried": 3.0}
    assert failures([]) == {}


def test_settings_show_what_differs_from_the_methods_defaults() -> None:
    config = {"method": "grpo", "seed": 7, "env": {"name": "webshop"}, "mine": {"own": 1}}
    found = {one["key"]: one for one in settings_page(config)}
    assert found["seed"] == {"key": "seed", "value": 7, "default": 0}
    assert found["env.name"]["default"] == "alfworld"
    assert "default" not in found["method"] and "default" not in found["mine.own"]
    assert "default" not in settings_page({"method": "no_such_method", "seed": 7})[1]


def test_the_index_has_columns_and_drops_empty_ones(toy: Path) -> None:
    found = Pages(RunFolder(toy)).document("index", "step-000001")
    assert found["episode"] == list(range(8)) and found["group"] == [0] * 4 + [1] * 4
    assert found["turns"] == [4] * 8 and "trial" not in found


def test_an_episode_shows_what_was_seen_and_what_came_back(toy: Path) -> None:
    turn = Pages(RunFolder(toy)).document("episode", "step-000001", "2")["turns"][0]
    assert turn["hint"].startswith("The action of turn 0")
    assert "kitchen" in json.dumps(turn["seen"]) and "pick up" in json.dumps(turn["came_back"])
    assert "take mug" not in json.dumps(turn["came_back"])  # the response says it already


def test_tokens_leave_out_what_was_not_computed(toy: Path) -> None:
    turn = Pages(RunFolder(toy)).document("tokens", "step-000001", "2")["turns"]["1"]
    assert len(turn["tokens"]) == len(turn["advantage"]) == len(turn["share"]) == 22
    assert not {"ids", "value", "return", "reference_logprob"} & set(turn)


def test_the_timeline_starts_at_zero(toy: Path) -> None:
    spans = Pages(RunFolder(toy)).document("timeline", "2")["spans"]
    assert min(span["start"] for span in spans) == 0 and max(span["end"] for span in spans) == 60


def test_the_timeline_says_what_episodes_waited_for(tmp_path: Path) -> None:
    run = RunFolder(write_run(tmp_path))
    assert Pages(run).document("timeline", "2")["episodes"] == 0  # its toy timeline has none
    row = {"step": 2, "role": "engine", "name": "engine 0", "slot": [0, 1]}
    rows = [
        {**row, "start": 10.0, "end": 20.0, "turns": [[0.5, 3.0], [4.0, 9.0]]},
        {**row, "start": 10.0, "end": 16.0, "turns": [[1.0, 5.5]]},
    ]
    with (tmp_path / "timeline.jsonl").open("a") as file:
        file.writelines(json.dumps(one) + "\n" for one in rows)
    found = Pages(run).document("timeline", "2")
    assert (found["episodes"], found["episode_seconds"], found["engine_seconds"]) == (2, 16.0, 12.0)


def test_a_folder_of_which_files_are_gone_has_its_pages(tmp_path: Path) -> None:
    pages = Pages(RunFolder(write_sparse_run(tmp_path)))
    for address in pages.addresses():
        pages.document(*address)
    assert pages.document("tokens", "step-000001", "0") == {"turns": {}}
    assert pages.document("timeline", "1")["spans"] == []


@pytest.mark.parametrize(
    "address",
    [
        ("episode", "step-000001", "99"), ("episode", "step-000009", "0"), ("index", "../../secret"),
        ("overview", "more"), ("unknown",), ("tokens", "../step-000001", "0"),
    ],
)  # fmt: skip
def test_what_was_not_recorded_is_no_page(toy: Path, address: tuple[str, ...]) -> None:
    with pytest.raises(NoSuchPage):
        Pages(RunFolder(toy)).document(*address)


def test_parsed_stages_do_not_pile_up(toy: Path) -> None:
    pages = Pages(RunFolder(toy))
    for address in pages.addresses():
        pages.document(*address)
    assert len(pages._episodes) == len(pages._tokens) == 3


def test_a_stage_that_is_written_again_is_read_again(tmp_path: Path) -> None:
    pages = Pages(RunFolder(write_run(tmp_path)))
    assert len(pages.document("index", "step-000001")["episode"]) == 8
    file = tmp_path / "trajectories/step-000001.jsonl"
    file.write_text(file.read_text().partition("\n")[0] + "\n")
    assert len(pages.document("index", "step-000001")["episode"]) == 1


def test_a_damaged_file_is_a_message(tmp_path: Path) -> None:
    client = TestClient(application([("toy", Pages(RunFolder(write_run(tmp_path))))], {}), "http://localhost")
    (tmp_path / "trajectories/step-000001.jsonl").write_text("no JSON\n")
    assert "is not JSON" in read(client.get("/data/0/index/step-000001.js").text)[1]["error"]
    assert "episode" in read(client.get("/data/0/index/step-000002.js").text)[1]


def test_a_script_holds_data_only() -> None:
    hostile = {
        "a": HOSTILE + "\u2028\ud800é",
        "__proto__": 1,
        "b": [float("nan"), float("inf"), 1 / 3, 12345.678],
    }
    script = as_script("0/x\n", hostile)
    assert script.isascii() and script.count("\n") == 1
    path, document = read(script)
    assert path == "0/x\n" and document["a"] == hostile["a"]
    assert document["b"] == [None, None, 0.3333, 12345.678] and document["__proto__"] == 1


def test_the_server_answers_its_own_page(client: TestClient) -> None:
    page = client.get("/")
    assert page.status_code == 200 and 'id="app"' in page.text
    assert "script-src 'self'" in page.headers["content-security-policy"]
    answer = client.get("/data/0/overview.js", headers={"Sec-Fetch-Site": "same-origin"})
    assert read(answer.text)[0] == "0/overview"
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    assert read(client.get("/data/runs.js").text)[1]["runs"] == ["toy"]


def test_the_server_refuses_other_names_for_it(client: TestClient) -> None:
    for name in ("evil.example", "127.0.0.1.evil.example:7531"):
        assert client.get("/data/0/overview.js", headers={"Host": name}).status_code == 400
    assert client.get("/data/0/overview.js", headers={"Host": "localhost:7531"}).status_code == 200


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_the_server_refuses_other_pages(client: TestClient, site: str) -> None:
    answer = client.get("/data/0/overview.js", headers={"Sec-Fetch-Site": site})
    assert answer.status_code == 403 and "hindsight(" not in answer.text


@pytest.mark.parametrize(
    "path", ["1/overview", "0", "x/overview", "0/index/..%2f..%2fetc", "0/index/%2e%2e/x", "-1/overview"]
)
def test_the_server_has_no_other_data(client: TestClient, path: str) -> None:
    assert client.get(f"/data/{path}.js").status_code == 404


def test_a_taken_port_is_named() -> None:
    with listen(0) as other, pytest.raises(PortTaken, match="choose another --port"):
        other.listen()
        listen(other.getsockname()[1])


def test_the_server_listens_on_loopback_only() -> None:
    with listen(0) as listening:
        assert listening.family == socket.AF_INET and listening.getsockname()[0] == "127.0.0.1"


def test_an_export_is_a_folder_of_its_own(toy: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    size = export([("toy", Pages(RunFolder(toy)))], out, {"version": "1"})
    assert size == sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    assert read((out / "data/0/tokens/step-000001/0.js").read_text())[0] == "0/tokens/step-000001/0"
    assert str(toy) not in "".join(file.read_text() for file in out.rglob("*.js"))
    with pytest.raises(ExportError, match="exists already"):
        export([], out, {})


@pytest.mark.parametrize(
    ("choice", "kept"),
    [
        ({"stages": "step-000002,after-RL"}, ["step-000002", "eval-000003-after-RL"]),
        ({"stages": " 1 "}, ["step-000001"]),
        ({"last": 2}, ["step-000002", "step-000003", "eval-000003-after-RL"]),
        ({"last": 9}, None),
        ({"stages": "1", "last": 1}, ["step-000001", "step-000003", "eval-000003-after-RL"]),
    ],
)
def test_an_export_may_have_some_stages(toy: Path, tmp_path: Path, choice: dict, kept: list[str]) -> None:
    view_runs([toy], 0, False, tmp_path / "out", False, print, **choice)
    data = tmp_path / "out/data/0"
    stages = [stage["key"] for stage in read((data / "overview.js").read_text())[1]["stages"]]
    kept = kept or [stage.key for stage in RunFolder(toy).steps()][1:]  # not before the first step
    assert stages == kept and sorted(file.stem for file in (data / "index").iterdir()) == sorted(kept)
    assert {folder.name for folder in (data / "episode").iterdir()} == set(kept)
    pages = Pages(RunFolder(toy), only=kept)
    left_out = next(stage.key for stage in RunFolder(toy).steps() if stage.key not in kept)
    with pytest.raises(NoSuchPage):
        pages.document("index", left_out)


def test_an_export_that_fails_leaves_nothing(tmp_path: Path) -> None:
    pages = Pages(RunFolder(write_run(tmp_path / "run")))
    (tmp_path / "run/tokens/step-000003.jsonl.gz").write_bytes(b"cut")
    with pytest.raises(RunFolderError, match="step-000003"):
        export([("run", pages)], tmp_path / "out", {})
    assert [one.name for one in tmp_path.iterdir()] == ["run"]


def test_the_demo_is_small_and_shows_credit() -> None:
    folders = sorted(DEMO.iterdir())
    names = {folder.name for folder in folders}
    assert names == {"grpo", "hero", "hint_sd", "serl"}
    files = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 700_000
    said = {"hero": {"diagnosis"}, "hint_sd": {"target"}}  # kinds of notes
    for folder in folders:
        pages = Pages(RunFolder(folder))
        steps = [stage.key for stage in pages.run.steps() if stage.training]
        assert steps and pages.document("overview")["starts"][0]["host"] == "demo"
        assert not Path(pages.run.config()["out"]).is_absolute()
        for step in steps:
            index = pages.document("index", step)
            assert folder.name in said or len(set(index["success"])) == 2  # mixed
            documents = [pages.document("tokens", step, str(one))["turns"] for one in index["episode"]]
            turns = [turn for document in documents for turn in document.values()]
            assert all(len(turn["tokens"]) == len(turn["advantage"]) for turn in turns if "advantage" in turn)
            assert any(turn.get("teacher_logprob") for turn in turns) == (folder.name != "grpo")
            played = [turn for one in pages.run.episodes(step) for turn in one["turns"]]
            notes = {note["kind"] for turn in played for note in turn.get("notes", [])}
            assert notes == said.get(folder.name, set())


def test_a_stage_that_a_run_does_not_have_is_said(toy: Path, tmp_path: Path) -> None:
    with pytest.raises(ViewError, match="'7' names no steps or evaluations"):
        view_runs([toy], 0, False, tmp_path / "out", False, print, stages="1,7")
    with pytest.raises(ViewError, match="--export"):
        view_runs([toy], 0, False, None, False, print, last=1)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("folders", "follow", "out", "message"),
    [
        ([], False, None, "--demo"),
        (["nowhere"], False, None, "nowhere"),
        (["."], True, "out", "--follow"),
    ],
)
def test_what_cannot_be_shown_is_said(
    tmp_path: Path, folders: list[str], follow: bool, out: str | None, message: str
) -> None:
    with pytest.raises(ViewError, match=message):
        view_runs([tmp_path / one for one in folders], 0, follow, out and tmp_path / out, False, print)


def test_a_runs_own_drawing_runs_only_if_asked_for(tmp_path: Path) -> None:
    """The settings of someone else's run can name any file."""
    (tmp_path / "mine_drawing.py").write_text(
        "def blocks(observation, action, feedback):\n    return [{'kind': 'text', 'text': 'drawn'}]\n"
    )
    run = write_run(tmp_path / "run")
    (run / "config.yaml").write_text(f"env:\n  name: {tmp_path / 'mine.py'}\n")
    (stage, *_) = RunFolder(run).steps()
    for asked in (False, True):
        page = Pages(RunFolder(run), own_drawings=asked).document("episode", stage.key, "0")
        assert ("drawn" in str(page["turns"][0]["seen"])) == asked
