"""What a judge is asked, what is read in its answer, and the one entry point. Golden files are for people."""

from __future__ import annotations

import asyncio
import json

import pytest
from feedback_toys import DESK, ROOM, golden, group, kitchen, show, trajectory, turn, written
from hypothesis import given
from hypothesis import strategies as st

from hindsight.configs.schema import Feedback
from hindsight.feedback import critique, reflect, target
from hindsight.feedback.hints import ANALYSTS, Hints, gather_hints
from hindsight.feedback.judge_client import Answer, JudgeError
from hindsight.feedback.reading import Unreadable, json_objects
from hindsight.feedback.reflect import LONGEST, diagnoses
from hindsight.feedback.sources import source_texts
from hindsight.feedback.transcript import Style

DIAGNOSES = [
    {"turn": 1, "verdict": "wrong", "cause": "Mugs are kept in the fridge.", "fix": "go to fridge 1"},
    {"turn": 2, "verdict": "invalid", "cause": "It holds no action.", "fix": None},
    {"turn": 3, "verdict": "good", "cause": "", "fix": None},
]
FAILURES = [{"turn": 1, "correction": "Go to fridge 1 instead: mugs are kept there."}]
SENTENCES = "This attempt failed. It looked for the mug in the wrong place. Look into the fridge first."
STYLES = {
    "judge": Style(Feedback(source="judge"), show=show),
    "judge_with_success": Style(Feedback(source="judge", sibling="and", rendering="pairs"), show=show),
    "reflect": Style(Feedback(source="reflect"), show=show),
    "target": Style(Feedback(source="target"), show=show),
    "target_three": Style(Feedback(source="target", targets=3), show=show),
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


def gather(found, ask=None, whole_turns=False, **settings):
    return asyncio.run(gather_hints(found, Feedback(**settings), ask, show, whole_turns=whole_turns))


@pytest.mark.parametrize("name", STYLES)
def test_questions_read_as_the_golden_file(name):
    style = STYLES[name]
    question = ANALYSTS[style.feedback.source].question(kitchen(), 0, style)
    assert question.write(12_000) + "\n" == golden(f"question_{name}")


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
    feedback = Feedback(sibling="or")
    found = asyncio.run(gather_hints(kitchen(), feedback, whole_turns=True))
    assert found.asked == found.unreadable == 0 and found.failures == ()
    plain = source_texts(kitchen(), Style(Feedback()))
    assert {key: text for key, text in found.texts.items() if key[0] == 1} == {
        key: text for key, text in plain.items() if key[0] == 1
    }


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
    question = reflect.question(first, 0, STYLES["reflect"]).write(12_000)
    assert ask.asked == [(question, reflect.SCHEMA)]


def test_only_an_answer_on_each_turn_needs_room_that_grows_with_the_turns():
    """60 words and their JSON are about 100 tokens."""
    for turns in (1, 3, 30):
        found = group(trajectory(*(turn(DESK, "look", "note"),) * turns))
        needs = {name: one.question(found, 0, STYLES[name]).tokens for name, one in ANALYSTS.items()}
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
    with pytest.raises(ValueError, match="needs a judge"):
        asyncio.run(gather_hints(kitchen(), Feedback(source="reflect")))


def test_judge_with_a_successful_sibling():
    ask = scripted(SENTENCES, SENTENCES)
    found = gather(kitchen(), ask, source="judge", sibling="and")
    assert {key[0] for key in found.texts} == {0, 2}
    assert all("A successful attempt at the same task" in asked[0] for asked in ask.asked)


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
def test_a_target_out_of_range_spoils_the_answer(wrong):
    first, style = kitchen().trajectories[0], STYLES["target_three"]
    assert target.read(json.dumps(FAILURES), first, style).texts.keys() == {0}
    with pytest.raises(Unreadable):
        target.read(json.dumps([*FAILURES, FAILURES[0] | wrong]), first, style)


def test_targets_are_the_earliest_and_no_more_than_asked_for():
    first = kitchen().trajectories[0]
    answer = json.dumps({"failures": [FAILURES[0] | {"turn": number} for number in (3, 1, 2)]})
    assert target.read(answer, first, STYLES["target"]).texts.keys() == {0}
    assert target.read(answer, first, STYLES["target_three"]).texts.keys() == {0, 1, 2}


def test_successful_trajectories_have_no_targets():
    assert target.question(kitchen(), 1, STYLES["target"]) is None


def test_targets_keep_the_end_of_a_long_trajectory_and_the_others_shorten_each_turn():
    long = group(trajectory(*(turn(DESK, "look", f"note {n} " + "x" * 500) for n in range(50))))
    asked = target.question(long, 0, STYLES["target"]).write(2000)
    assert "[earlier turns are left out]" in asked and "note 49" in asked and "note 40 " not in asked
    for analyst in (reflect, critique):
        asked = analyst.question(long, 0, STYLES["reflect"]).write(10_000)
        assert len(asked) < 12_500 and all(f"{n}" in asked for n in range(1, 51))
        assert "Step 50: " in asked or "Turn 50\n" in asked
    last = group(trajectory(turn(DESK, "look", "page " * 5000)))
    assert len(critique.question(last, 0, STYLES["judge"]).write(2000)) < 3000


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


@pytest.mark.parametrize("name", STYLES)
@given(answer=GARBAGE)
def test_garbage_raises_nothing_but_unreadable(name, answer):
    style, first = STYLES[name], kitchen().trajectories[0]
    try:
        reading = ANALYSTS[style.feedback.source].read(answer, first, style)
    except Unreadable:
        return
    assert set(reading.texts) <= {0, 1, 2} and 0 <= reading.unreadable <= 3
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
    asked = reflect.question(group(first), 0, STYLES["reflect"]).write(12_000)
    assert "Task:\nYou act in a text world.\n\nYou are in the middle" in asked
