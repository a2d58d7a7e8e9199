"""What a judge is asked, what is read in its answer, and the one entry point. Golden files are for people."""

from __future__ import annotations

import asyncio
import json
import sys

import pytest
from feedback_toys import DESK, ROOM, feedback, golden, group, kitchen, show, trajectory, turn, written
from hypothesis import given
from hypothesis import strategies as st

from hindsight.configs import registry
from hindsight.configs.load import load_config
from hindsight.configs.method import Feedback
from hindsight.feedback import reflect
from hindsight.feedback.hints import Hints, gather_hints
from hindsight.feedback.judge_client import Answer, JudgeError
from hindsight.feedback.reading import Note, Unreadable, json_objects
from hindsight.feedback.reflect import LONGEST, diagnoses
from hindsight.feedback.source import JudgedSource, make_sources
from hindsight.feedback.sources import SUCCESS_TITLE
from hindsight.feedback.target import CUT
from hindsight.feedback.transcript import Style

DIAGNOSES = [
    {"turn": 1, "verdict": "wrong", "cause": "Mugs are kept in the fridge.", "fix": "go to fridge 1"},
    {"turn": 2, "verdict": "invalid", "cause": "It holds no action.", "fix": None},
    {"turn": 3, "verdict": "good", "cause": "", "fix": None},
]
FAILURES = [{"turn": 1, "correction": "Go to fridge 1 instead: mugs are kept there."}]
SENTENCES = "This attempt failed. It looked for the mug in the wrong place. Look into the fridge first."
SETTINGS = {
    "judge": feedback("judge"),
    "judge_with_success": feedback("sibling judge", rendering="pairs"),
    "reflect": feedback("reflect"),
    "target": feedback("target"),
    "target_three": feedback("target", targets=3),
}


def scripted(*answers):
    """Answers in turn; an exception is raised. It notes what it was asked."""
    left, asked = list(answers), []

    async def ask(question, schema):
        asked.append((question.write(12_000), schema))
        answer = left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return Answer(answer, tokens_read=10, tokens_written=2)

    ask.asked = asked
    return ask


def judged(name):
    """The source of SETTINGS[name] that asks."""
    return next(one for one in make_sources(SETTINGS[name]) if isinstance(one, JudgedSource))


def question(name, found, index=0):
    """What the source of SETTINGS[name] asks about a trajectory."""
    return judged(name).question(found, index, Style(SETTINGS[name], show=show))


def read(name, answer, first):
    """What it reads in an answer."""
    return judged(name).read(answer, first, Style(SETTINGS[name], show=show))


def gather(found, ask=None, whole_turns=False, **settings):
    return asyncio.run(gather_hints(found, feedback(**settings), ask, show, whole_turns=whole_turns))


@pytest.mark.parametrize("name", SETTINGS)
def test_questions_read_as_the_golden_file(name):
    assert question(name, kitchen()).write(12_000) + "\n" == golden(f"question_{name}")


@pytest.mark.parametrize(
    ("source", "answer"),
    [
        ("judge", SENTENCES),
        ("reflect", json.dumps({"turns": DIAGNOSES})),
        ("target", json.dumps({"failures": FAILURES})),
    ],
)
def test_texts_read_as_the_golden_file(source, answer):
    first = group(kitchen().trajectories[0])
    texts = gather(first, scripted(answer), source=source, whole_turns=True).texts
    assert written(texts) == golden(f"texts_{source}")


def test_sources_without_a_judge_come_out_as_they_are():
    found = gather(kitchen(), source="sibling immediate", combine="first", whole_turns=True)
    assert found.asked == found.unreadable == 0 and found.failures == ()
    assert found.texts.keys() == {(index, turn) for index in range(3) for turn in range(3)}


@pytest.mark.parametrize(
    "source", ["immediate", "next_observation", "future", "reference", "judge", "reflect"]
)
def test_an_answer_that_did_not_parse_has_a_text_only_for_signals_on_whole_turns(source):
    found = group(kitchen().trajectories[0], reference=("look",))
    answers = {"judge": SENTENCES, "reflect": json.dumps(DIAGNOSES)}
    some = gather(found, scripted(answers.get(source)), source=source)
    every = gather(found, scripted(answers.get(source)), source=source, whole_turns=True)
    assert (0, 1) in every.texts
    assert some.texts == {key: text for key, text in every.texts.items() if key != (0, 1)}


def test_a_judge_is_asked_for_what_can_be_read():
    ask = scripted(json.dumps(DIAGNOSES))
    first = group(kitchen().trajectories[0])
    gather(first, ask, source="reflect")
    assert ask.asked == [(question("reflect", first).write(12_000), reflect.SCHEMA)]


def test_only_an_answer_on_each_turn_needs_room_that_grows_with_the_turns():
    """60 words and their JSON are about 100 tokens."""
    for turns in (1, 3, 30):
        found = group(trajectory(*(turn(DESK, "look", "note"),) * turns))
        needs = {name: question(name, found).tokens for name in ("judge", "reflect", "target")}
        assert needs == {"judge": 0, "reflect": 100 * turns, "target": 0}


def test_a_judge_that_fails_costs_its_trajectory_only():
    ask = scripted(SENTENCES, JudgeError("gone"), SENTENCES)
    found = gather(kitchen(), ask, source="judge", whole_turns=True)
    assert found.texts.keys() == {(index, number) for index in (0, 2) for number in range(3)}
    assert [(failure.kind, failure.message, failure.task) for failure in found.failures] == [
        ("judge", "gone", "kitchen-7")
    ]
    assert (found.asked, found.unreadable) == (3, 0)


def test_other_errors_are_not_swallowed():
    with pytest.raises(KeyError):
        gather(kitchen(), scripted(*[KeyError("a bug")] * 3), source="judge")


def test_an_answer_that_cannot_be_read_is_counted_and_is_no_failure():
    found = gather(kitchen(), scripted("What?", "{}"), source="target")
    # The successful trajectory is not asked about; the others cost what they cost.
    assert found == Hints(asked=2, unreadable=2, tokens_read=20, tokens_written=4)


def test_a_judged_source_needs_a_judge():
    with pytest.raises(ValueError, match="need a judge"):
        asyncio.run(gather_hints(kitchen(), Feedback(sources=["reflect"])))


def test_judge_with_a_successful_sibling():
    """Every trajectory is asked about; where no sibling succeeded, without a reference."""
    ask = scripted(SENTENCES, SENTENCES, SENTENCES)
    found = gather(kitchen(), ask, source="sibling judge")
    assert {key[0] for key in found.texts} == {0, 1, 2}
    shown = ["A successful attempt at the same task" in asked for asked, _ in ask.asked]
    assert shown == [True, False, True]
    assert SUCCESS_TITLE not in found.texts[0, 0]  # the judge has read it, the teacher does not


def test_a_judge_that_reads_no_sibling_is_asked_where_there_is_one():
    ask = scripted(json.dumps({"turns": DIAGNOSES}), json.dumps({"turns": DIAGNOSES}))
    found = gather(kitchen(), ask, source="sibling reflect")
    assert (found.asked, {key[0] for key in found.texts}) == (2, {0, 2})
    assert found.texts[0, 0].startswith(SUCCESS_TITLE)


def test_several_judges_are_counted_together():
    ask = scripted(SENTENCES, json.dumps({"failures": FAILURES}))
    found = gather(group(kitchen().trajectories[0]), ask, source="judge target")
    assert (found.asked, found.tokens_read) == (2, 20)
    assert found.texts.keys() == found.notes.keys() == {(0, 0)}


def test_a_diagnosis_can_stand_alone():
    first = group(kitchen().trajectories[0])
    answer = json.dumps({"turns": DIAGNOSES})
    both = gather(first, scripted(answer), source="reflect", whole_turns=True).texts
    alone = gather(first, scripted(answer), source="reflect", observation=False, whole_turns=True).texts
    assert alone == {key: text[text.index(reflect.DIAGNOSIS_TITLE) :] for key, text in both.items()}
    assert alone != both


def test_turns_left_out_by_a_reflection_are_counted():
    answer = json.dumps({"turns": DIAGNOSES})
    cut = answer[: answer.index('{"turn": 3') + 20]  # the answer ran into its limit
    found = gather(group(kitchen().trajectories[0]), scripted(cut), source="reflect", whole_turns=True)
    assert (found.texts.keys(), found.unreadable) == ({(0, 0), (0, 1)}, 1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"turn": 0},
        {"turn": 4},
        {"turn": "1"},
        {"turn": True},
        {"turn": 1.0},
        {"verdict": "bad"},
        {"verdict": ["wrong"]},
        {"cause": " "},
        {"cause": None},
    ],
)
def test_what_is_no_diagnosis_is_left_out(wrong):
    right = {"turn": 2, "verdict": "good", "cause": ""}
    answer = json.dumps([DIAGNOSES[0] | wrong, right])
    assert diagnoses(answer, 3).keys() == {1}
    with pytest.raises(Unreadable):
        diagnoses(json.dumps([DIAGNOSES[0] | wrong]), 3)


def test_the_first_diagnosis_of_a_turn_counts_and_thoughts_do_not():
    second = DIAGNOSES[0] | {"verdict": "good"}
    answer = f"<think>{json.dumps(second)}</think>Here:\n{json.dumps(DIAGNOSES[0])}\n{json.dumps(second)}"
    assert diagnoses(answer, 3)[0].verdict == "wrong"


def test_long_diagnoses_are_cut():
    [found] = diagnoses(json.dumps(DIAGNOSES[0] | {"cause": "why " * 100}), 3).values()
    assert len(found.text().split()) == LONGEST + 1 and found.text().endswith("why …")


@pytest.mark.parametrize(
    "wrong",
    [
        {"turn": 0},
        {"turn": 4},
        {"turn": True},
        {"turn": None},
        {"correction": ""},
        {"correction": 3},
    ],
)
def test_a_target_that_cannot_be_read_is_dropped_and_counted(wrong):
    first = kitchen().trajectories[0]
    assert read("target_three", json.dumps(FAILURES), first).unreadable == 0
    for entries in ([*FAILURES, FAILURES[0] | wrong], [FAILURES[0] | wrong, *FAILURES]):
        found = read("target_three", json.dumps(entries), first)
        assert (found.texts.keys(), found.unreadable) == ({0}, 1)
    with pytest.raises(Unreadable, match="no correction of turns 1 to 3"):
        read("target_three", json.dumps([FAILURES[0] | wrong]), first)


def test_targets_are_the_earliest_and_no_more_than_asked_for():
    first = kitchen().trajectories[0]
    answer = json.dumps({"failures": [FAILURES[0] | {"turn": number} for number in (3, 1, 2)]})
    one = read("target", answer, first)
    assert one.texts.keys() == {0} and one.notes == {0: Note("target", FAILURES[0]["correction"])}
    assert read("target_three", answer, first).texts.keys() == {0, 1, 2}


def test_successful_trajectories_have_no_targets():
    assert question("target", kitchen(), 1) is None


def test_targets_keep_the_end_of_a_long_trajectory_and_the_others_shorten_each_turn():
    long = group(trajectory(*(turn(DESK, "look", f"note {n} " + "x" * 500) for n in range(50))))
    asked = question("target", long).write(2000)
    assert f"\n{CUT}" in asked and "note 49" in asked and "note 40 " not in asked
    for name in ("reflect", "judge"):
        asked = question(name, long).write(10_000)
        assert len(asked) < 12_500 and all(f"{n}" in asked for n in range(1, 51))
        assert "Step 50: " in asked or "Turn 50\n" in asked
    last = group(trajectory(turn(DESK, "look", "page " * 5000)))
    assert len(question("judge", last).write(2000)) < 3000


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["turn", "turns", "verdict", "cause", "failures", "correction"]), inner
        )
    ),
)
GARBAGE = st.one_of(
    st.text(),
    st.text(alphabet='{}[]":,\\ut123 ', max_size=60),
    JSON.map(json.dumps),
    JSON.map(lambda value: json.dumps({"turns": value, "failures": value})[:-2]),
    st.lists(
        st.fixed_dictionaries(
            {},
            optional={
                "turn": st.integers(-1, 5) | JSON,
                "verdict": st.sampled_from(reflect.VERDICTS) | JSON,
                "cause": st.text(st.characters(codec=None)) | JSON,
                "fix": st.text() | JSON,
                "correction": st.text(st.characters(codec=None)) | JSON,
            },
        )
    ).map(json.dumps),
)


@pytest.mark.parametrize("name", SETTINGS)
@given(answer=GARBAGE)
def test_garbage_raises_nothing_but_unreadable(name, answer):
    try:
        reading = read(name, answer, kitchen().trajectories[0])
    except Unreadable:
        return
    assert set(reading.texts) <= {0, 1, 2} and 0 <= reading.unreadable <= max(3, answer.count("{"))
    for text in reading.texts.values():
        assert text.strip() and text.encode()  # it can be shown to a tokenizer


@pytest.mark.parametrize("answer", ['{"a":' * 100_000, "{" * 100_000, '{"turn": ' + "9" * 5000 + "}"])
def test_deep_and_huge_answers_are_unreadable(answer):
    with pytest.raises(Unreadable):
        diagnoses(answer, 3)


def test_objects_are_found_in_a_list_in_lines_and_in_text():
    one, two = {"a": {"b": 1}}, {"a": "}"}
    for text in (json.dumps([one, two]), f"First {json.dumps(one)},\n{json.dumps(two)} and {{this}}."):
        assert list(json_objects(text)) == [one, two]


def test_a_task_is_told_with_its_rules():
    first = trajectory(turn(ROOM, "look", "It is dark."))
    asked = question("reflect", group(first)).write(12_000)
    assert "Task:\nYou act in a text world.\n\nYou are in the middle" in asked


SHORT = """
from dataclasses import dataclass

from hindsight.configs.setting import setting
from hindsight.feedback.source import Judged, JudgedSource, Pooled, PooledSource
from hindsight.feedback.reading import Question, Reading, Unreadable


class First(PooledSource):
    TITLE, LABEL = "It began:", "beginning"

    @dataclass(frozen=True)
    class Settings(Pooled):
        words: int = setting(2, "words of the feedback that are shown", low=1)

    def text(self, group, at, style):
        feedback = group.trajectories[at[0]].turns[at[1]].result.feedback
        return " ".join(feedback.split()[: self.settings.words])


class Blame(JudgedSource):
    def question(self, group, index, style):
        return Question(lambda characters: f"Which turn of {len(group.trajectories[index].turns)}?")

    def read(self, answer, trajectory, style):
        if not answer.isdigit():
            raise Unreadable("no number")
        return Reading({int(answer) - 1: "It went wrong here."})
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A file with a source of one's own, and one that asks a judge."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(registry, "PLUGIN_FOLDERS", [])
    (tmp_path / "own_feedback.py").write_text(SHORT)
    yield tmp_path / "own_feedback.py"
    sys.modules.pop("own_feedback", None)


def test_a_source_of_ones_own_reads_the_group(own):
    source = f"{own}:First"
    assert load_config(None, [f"feedback.sources=[{source}]", "feedback.words=3"]).feedback.words == 3
    texts = gather(kitchen(), source=source, words=1).texts
    assert texts[0, 0] == "It began:\nYou" and texts.keys() >= {(1, 0), (2, 2)}
    pooled = gather(kitchen(), source=source, granularity="anchor").texts
    assert pooled[0, 0] == pooled[1, 0] and "  beginning, best outcome:\n    You arrive" in pooled[0, 0]
    assert gather(kitchen(), source=f"sibling {source}", words=1).texts[0, 0].endswith("\n\nIt began:\nYou")


def test_a_source_of_ones_own_asks_a_judge(own):
    ask = scripted("1", "What?", "3")
    found = gather(kitchen(), ask, source=f"{own}:Blame")
    assert [question for question, _ in ask.asked] == ["Which turn of 3?"] * 3
    assert found.texts == {(0, 0): "It went wrong here.", (2, 2): "It went wrong here."}
    assert (found.asked, found.unreadable) == (3, 1)


def test_missing_settings_of_a_source_are_its_defaults():
    """A configuration may hold the section's own dataclass, without the source's settings."""
    answer = json.dumps({"failures": [FAILURES[0] | {"turn": number} for number in (1, 3)]})
    plain, first = Feedback(sources=["target"]), group(kitchen().trajectories[0])
    found = asyncio.run(gather_hints(first, plain, scripted(answer), show))
    assert found.texts.keys() == {(0, 0)}
