"""Search-QA: the generated world, episodes, exact match, official files, and a server of passages."""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import PackageNotFoundError
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hindsight.configs.load import load_config
from hindsight.envs.base import DataMissing, EnvError
from hindsight.envs.drawing import draw_turn
from hindsight.envs.registry import make_family
from hindsight.envs.searchqa.corpus import LocalRetriever, Passage, RemoteRetriever, read_corpus
from hindsight.envs.searchqa.env import SearchQAEnv, contains, exact_match, normalized, read_search_action
from hindsight.envs.searchqa.facts import RELATIONS, chains, world
from hindsight.envs.tasks import TaskSpec

PAGES = [
    Passage("0", "Vela", "Vela is a film. It was directed by Mo Rin."),
    Passage("1", "Mo Rin", "Mo Rin is a person. This person was born in the city of Tabo."),
    Passage("2", "Tabo", "Tabo is a city."),
]
ASKED = {
    "question": "Where was the director of Vela born?",
    "answers": ["Tabo", "the Tabo"],
    "pages": ["Vela", "Mo Rin"],
}
TASK = TaskSpec("test/0", "searchqa", "2_hop", "test", ASKED)


def reader(turns=4, passages=1):
    return SearchQAEnv(LocalRetriever(PAGES), passages, turns)


def test_an_episode_searches_and_answers():
    env = reader()
    first = env.reset(TASK)
    assert first.text == "Question: Where was the director of Vela born?" and "<search>" in first.rules
    found = env.step("<search>film Vela</search>")
    assert found.observation.text == (
        '<information>Doc 1(Title: "Vela") Vela is a film. It was directed by Mo Rin.</information>'
    )
    assert found.feedback.endswith("None of these passages has the answer.")
    assert (found.info["hop"], found.info["holds_answer"], found.reward) == (1, False, 0.0)
    found = env.step("<search>Mo Rin person</search>")
    assert found.info == {"passages": ["Mo Rin"], "holds_answer": True, "hop": 2}
    ended = env.step("<answer>the tabo!</answer>")
    assert (ended.terminated, ended.success, ended.reward) == (True, True, 1.0)


def test_a_wrong_answer_ends_the_episode_and_its_feedback_tells_the_right_one():
    env = reader()
    env.reset(TASK)
    ended = env.step("<answer>The city of Tabo</answer>")
    assert (ended.terminated, ended.success, ended.reward, ended.info["contained"]) == (
        True,
        False,
        0.0,
        True,
    )
    assert ended.feedback == "The answer is wrong. It is: Tabo"


def test_what_is_no_action_takes_a_turn_and_a_search_on_the_last_turn_earns_nothing():
    env = reader(turns=3)
    env.reset(TASK)
    assert env.step("look").feedback.startswith("Nothing happened")
    assert env.step("<search>zzz</search>").observation.text == "<information>No passage fits.</information>"
    last = env.step("<search>Vela</search>")
    assert last.truncated and not last.success and last.reward == 0.0


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("<search> a b </search>", ("search", "a b")),
        ("<answer>x</answer>", ("answer", "x")),
        ("<search>x</answer>", ("", "")),
        ("<search></search>", ("", "")),
        ("x <search>y</search>", ("", "")),
    ],
)
def test_actions(text, read):
    assert read_search_action(text) == read


def slow_normal_form(text):
    kept = "".join(letter for letter in text.lower() if letter not in "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())


@given(st.text(alphabet="aAnthe .,-'xé1", max_size=30), st.text(alphabet="aAnthe .,-'xé1", max_size=30))
def test_exact_match_is_squads(first, second):
    assert normalized(first) == slow_normal_form(first)
    assert exact_match(first, [second]) == (slow_normal_form(first) == slow_normal_form(second))


def test_a_gold_answer_is_found_as_whole_words():
    assert contains("He was born in New York, in 1900.", ["new york"]) and not contains(
        "newyork", ["new york"]
    )
    assert not contains("anything", ["the"])  # nothing is left of it


def test_the_generated_world_has_one_answer_to_each_question():
    entities = world(500, seed=3)
    by_title = {entity.title: entity for entity in entities}
    assert len(by_title) == len(entities) and entities == world(500, seed=3)
    assert {entity.kind for entity in entities} == set(RELATIONS)
    for hops in (1, 2, 3):
        asked = list(islice(chains(entities, hops, seed=3), 100))
        assert len({chain.question for chain in asked}) == 100
        for chain in asked:
            assert len(chain.pages) == hops and chain.answer not in chain.question
            for page, following in zip(chain.pages, [*chain.pages[1:], chain.answer], strict=True):
                assert following in by_title[page].values.values()
            assert by_title[chain.pages[0]].subject in chain.question


@pytest.fixture
def family(tmp_path, monkeypatch):
    """The default family over a small generated world, with a cache of its own."""
    monkeypatch.setattr("hindsight.envs.searchqa.env.PAGES", 600)
    monkeypatch.setattr("hindsight.envs.searchqa.env.QUESTIONS", {"train": 30, "test": 10})
    monkeypatch.setenv("HINDSIGHT_CACHE", str(tmp_path))
    return make_family(
        load_config("searchqa", ["env.kinds=[]", "env.train_tasks=60", "env.eval_tasks=30"]).env
    )


def test_generated_questions_are_answered_by_their_reference(family):
    manifest = family.manifest()
    assert Counter(task.kind for task in manifest.evaluation) == {"1_hop": 10, "2_hop": 10, "3_hop": 10}
    assert manifest.digest == family.manifest().digest
    questions = [{task.data["question"] for task in tasks} for tasks in (manifest.train, manifest.evaluation)]
    assert not questions[0] & questions[1]
    env = family.make()
    played = [env.demonstrate(task, 0, 0.0) for task in manifest.evaluation]
    assert all(demonstration.success for demonstration in played)
    assert {len(one.steps) for one in played} == {2, 3, 4}  # 3 hops just fit into four turns


def official(
    folder, corpus='{"id": "7", "contents": "\\"Oslo\\"\\nOslo is the capital of Norway."}\n', **splits
):
    folder.mkdir()
    (folder / "corpus.jsonl").write_text(corpus)
    for split, rows in splits.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return make_family(load_config("searchqa", [f"env.data={folder}", "env.kinds=[]"]).env)


ROW = {"data_source": "nq", "question": "what is the capital of norway", "answers": ["Oslo"]}


def test_official_files(tmp_path):
    family = official(tmp_path / "data", train=[ROW] * 2, test=[ROW, ROW | {"data_source": "musique"}])
    manifest = family.manifest()
    assert [task.kind for task in manifest.evaluation] == ["nq", "musique"]
    assert family.panels()["searchqa/musique"]() == manifest.evaluation[1:]
    with pytest.raises(DataMissing, match="no questions of popqa"):
        family.panels()["searchqa/popqa"]()
    env = family.make()
    assert env.reset(manifest.train[0]).text.endswith("norway?") and env.reference(manifest.train[0]) is None
    assert env.step("<search>Norway</search>").info["holds_answer"]


def test_official_kinds_need_official_files(family):
    settings = replace(family.settings, kinds=["nq"])
    with pytest.raises(
        DataMissing, match=r"set env\.data for the official questions\) has no questions for train"
    ):
        make_family(settings).manifest()


def test_search_r1s_answers_have_a_name_of_their_own(tmp_path):
    renamed = {("golden_answers" if name == "answers" else name): value for name, value in ROW.items()}
    manifest = official(tmp_path / "data", train=[renamed], test=[ROW]).manifest()
    assert manifest.train[0].data == manifest.evaluation[0].data


def test_search_r1s_parquet_files(tmp_path):
    """Its columns, nested ones included, of which most are not needed."""
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow: pip install pyarrow")
    import pyarrow

    def row(number, source, question, answers):
        told = {"style": "rule", "ground_truth": {"target": answers}}
        prompt = [{"role": "user", "content": f"Answer the given question. Question: {question}"}]
        extra = {"index": number, "split": "test"}
        first = {
            "id": f"test_{number}",
            "question": question,
            "golden_answers": answers,
            "data_source": source,
        }
        return first | {
            "prompt": prompt,
            "ability": "fact-reasoning",
            "reward_model": told,
            "extra_info": extra,
        }

    rows = [row(0, "nq", "who wrote it?", ["Ada", "A. L."]), row(1, "musique", "where is it", ["Oslo"])]
    family = official(tmp_path / "data", test=[ROW])
    for split in ("train", "test"):
        parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / f"data/{split}.parquet")
    assert family.manifest().evaluation[0].data["question"] == "what is the capital of norway?"  # JSON first
    (tmp_path / "data/test.jsonl").unlink()
    manifest = family.manifest()
    told = [(task.id, task.kind, task.data["question"], task.data["answers"]) for task in manifest.evaluation]
    assert told == [
        ("test/0", "nq", "who wrote it?", ["Ada", "A. L."]),
        ("test/1", "musique", "where is it?", ["Oslo"]),
    ]
    assert [task.id for task in family.panels()["searchqa/musique"]()] == ["test/1"]
    without = pyarrow.Table.from_pylist([{"data_source": "nq", "prompt": "p"}])
    parquet.write_table(without, tmp_path / "data/test.parquet")
    with pytest.raises(DataMissing, match=r"test\.parquet, line 1: it must have data_source, question"):
        family.manifest()
    (tmp_path / "data/test.parquet").write_text("no table")
    with pytest.raises(DataMissing, match=r"test\.parquet cannot be read as parquet"):
        family.manifest()


def test_without_a_reader_of_parquet_its_package_is_named(tmp_path, monkeypatch):
    def version(package):
        raise PackageNotFoundError(package)

    family = official(tmp_path / "data")
    (tmp_path / "data/train.parquet").touch()
    monkeypatch.setattr("hindsight.configs.packages.version", version)
    with pytest.raises(
        DataMissing, match=r"train\.parquet needs the package pyarrow: pip install pyarrow; or"
    ):
        family.manifest()


@pytest.mark.parametrize(
    ("row", "wrong"),
    [
        ({"question": "q"}, "line 1: it must have data_source"),
        (ROW | {"answers": []}, "answers"),
        (ROW | {"data_source": "x"}, "no questions"),
    ],
)
def test_files_of_another_form_are_refused(tmp_path, row, wrong):
    with pytest.raises(DataMissing, match=wrong):
        official(tmp_path / "data", train=[row], test=[row]).manifest()


def test_a_corpus_of_another_form_is_refused(tmp_path):
    for text, wrong in [("{", "JSON lines"), ('{"id": 1}', "line 1"), ("[]", "line 1")]:
        (tmp_path / "corpus.jsonl").write_text(text)
        with pytest.raises(DataMissing, match=wrong):
            list(read_corpus(tmp_path / "corpus.jsonl"))
    with pytest.raises(DataMissing, match="cannot be read"):
        list(read_corpus(tmp_path / "none.jsonl"))


@pytest.fixture
def server():
    """A server with both interfaces; `failing` makes it answer with an error."""
    state = {"asked": [], "failing": False}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            state["asked"].append(asked)
            found = [{"document": {"id": "3", "contents": '"Oslo"\nA city.'}, "score": 1.0}] * 5
            answer = json.dumps({"result": [found]}).encode()
            self.send_response(500 if state["failing"] else 200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *args):
            pass

    served = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=served.serve_forever, daemon=True).start()
    state["url"] = f"http://127.0.0.1:{served.server_port}/retrieve"
    yield state
    served.shutdown()
    served.server_close()


@pytest.mark.parametrize(
    ("dialect", "key"), [("search_r1", {"queries": ["q"]}), ("verl_agent", {"query": "q"})]
)
def test_a_server_is_asked_in_its_dialect(server, dialect, key):
    found = RemoteRetriever(server["url"], dialect).search("q", 3)
    assert found == [Passage("3", "Oslo", "A city.")] * 3
    assert server["asked"] == [{"topk": 3, "return_scores": True} | key]


def test_a_server_that_fails_is_an_infrastructure_failure(server):
    server["failing"] = True
    with pytest.raises(EnvError, match=r"env\.retriever_url = .* failed"):
        RemoteRetriever(server["url"], "search_r1").search("q", 3)
    with pytest.raises(EnvError, match=r"env\.retriever_url"):
        RemoteRetriever("http://127.0.0.1:9/retrieve", "search_r1").search("q", 3)


def test_a_turn_is_drawn_as_a_query_and_passages():
    env = reader(passages=2)
    env.reset(TASK)
    result = env.step("<search>Vela</search>")
    drawn = draw_turn("searchqa", "", "<search>Vela</search>", result.feedback)
    assert [block["kind"] for block in drawn] == ["call", "list", "text"]
    assert drawn[0]["arguments"] == {"query": "Vela"} and drawn[1]["items"][0].startswith('(Title: "Vela")')
    assert draw_turn("searchqa", "no passage", "look", "") == [
        {"kind": "text", "text": t} for t in ("no passage", "look")
    ]
