"""Skills from a file, skills that a judge extracts, and the guide of a group."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest
from feedback_toys import TASK, feedback, kitchen, show

from hindsight.configs.check import check_config
from hindsight.configs.load import load_config
from hindsight.feedback.hints import gather_hints
from hindsight.feedback.judge_client import Answer, JudgeError
from hindsight.feedback.reading import Unreadable
from hindsight.feedback.skill_writing import extracted
from hindsight.feedback.skills import SHIPPED, SkillsError, load_skills, skills_for

OWN = Path(__file__).parents[2] / "examples" / "env.py"
SHIPPING = ("alfworld", "webshop", "taubench", "appworld", "bfcl", "searchqa")


def gathered(group, settings, answer):
    """The hints, with a judge that answers by `answer(question)`; and the questions that it was asked."""
    asked = []

    async def judge(question, schema=None):
        asked.append(question.write(10_000))
        said = answer(asked[-1])
        if isinstance(said, JudgeError):
            raise said
        return Answer(said, 10, 5)

    return asyncio.run(gather_hints(group, settings, judge, show, whole_turns=True)), asked


@pytest.mark.parametrize("env", SHIPPING)
def test_skills_are_shipped_for_each_environment(env):
    skills = load_skills(str(SHIPPED / f"{env}.yaml"))
    task = replace(TASK, env=env, kind="pick_two_obj_and_place")
    text = skills_for(task, skills)
    assert text.startswith("- ") and ("second one" in text) == (env == "alfworld")
    problems = check_config(load_config(None, ["method=sdar", f"env.name={env}"]))
    assert not [problem for problem in problems if problem.startswith("feedback")]


def test_every_turn_is_shown_the_general_skills_and_those_of_the_tasks_type(tmp_path):
    file = tmp_path / "skills.yaml"
    file.write_text("general: Open what is closed.\nkinds: {find: Look in the fridge., other: Sleep.}\n")
    found = asyncio.run(gather_hints(kitchen(), feedback("skills", skills=str(file)), whole_turns=True))
    assert len(found.texts) == 9
    assert set(found.texts.values()) == {
        "What helps in tasks of this kind:\nOpen what is closed.\nLook in the fridge."
    }


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        (None, "cannot be read"),
        ("general: [a]", "must hold `general`"),
        ("kinds: {}", "must hold"),
        ("{", "cannot"),
    ],
)
def test_a_file_that_has_no_skills_is_refused_before_the_run(tmp_path, text, wrong):
    file = tmp_path / "skills.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(SkillsError, match=wrong):
        load_skills(str(file))
    problems = check_config(load_config(None, ["method=sdar", f"feedback.skills={file}"]))
    assert any(problem.startswith("feedback.skills: ") and str(file) in problem for problem in problems)


def test_an_environment_without_skills_says_what_to_set():
    problems = check_config(load_config(None, ["method=sdar", f"env.name={OWN}"]))
    assert any("none is shipped for env.name" in problem for problem in problems)


def test_a_turn_is_shown_its_own_skill_or_else_that_of_its_trajectory():
    answer = {"episode": "Open the fridge.", "steps": [{"turn": 2, "skill": "Answer in the form."}]}
    found, asked = gathered(kitchen(), feedback("extracted_skills"), lambda question: json.dumps(answer))
    assert len(asked) == 3 and "How it ended:\nsuccess" in asked[1]
    assert found.texts[0, 0] == found.texts[0, 2] == "A skill learned from this attempt:\nOpen the fridge."
    assert found.texts[0, 1] == "A skill for this step:\nAnswer in the form."
    assert found.notes[0, 1].text == "Answer in the form." and (0, 0) not in found.notes


def test_skills_that_cannot_be_read_are_skipped_and_an_answer_without_any_is_not_used():
    steps = [{"turn": 9, "skill": "a"}, {"turn": True, "skill": "b"}, {"turn": 1}, {"turn": 1, "skill": "c"}]
    assert extracted(json.dumps({"episode": "e", "steps": steps}), 3) == ("e", {0: "c"})
    many = [{"turn": number, "skill": "s"} for number in range(1, 9)]
    assert len(extracted(json.dumps({"episode": "e", "steps": many}), 8)[1]) == 5
    for answer in ("none", '{"steps": []}', '{"episode": 3, "steps": []}'):
        with pytest.raises(Unreadable):
            extracted(answer, 3)
    found, _ = gathered(kitchen(), feedback("extracted_skills"), lambda question: "I cannot say.")
    assert found.texts == {} and found.unreadable == 3


def test_a_guide_is_written_from_reflections_on_success_and_failure_and_shown_everywhere():
    def answer(question):
        if "Of attempts that succeeded:" in question:
            return "DO: open the fridge.\nAVOID: the desk."
        return (
            "<think>…</think>1. I opened it." if "ended:\nsuccess" in question else "1. I went to the desk."
        )

    found, asked = gathered(kitchen(), feedback("guide"), answer)
    assert len(asked) == found.asked == 4
    last = asked[-1]
    assert (
        last.index("I opened it.")
        < last.index("Of attempts that failed:")
        < last.index("I went to the desk.")
    )
    assert last.count("I went to the desk.") == 2 and "<think>" not in last
    assert len(found.texts) == 9 and len(set(found.texts.values())) == 1
    assert found.texts[0, 0].endswith("AVOID: the desk.") and found.notes[0, 2].kind == "reflection"
    assert (found.tokens_read, found.tokens_written) == (40, 20)


def test_a_group_without_contrast_gets_no_guide_and_costs_no_question():
    found, asked = gathered(
        replace(kitchen(), trajectories=kitchen().trajectories[::2]), feedback("guide"), str
    )
    assert asked == [] and found.texts == {}


def test_without_a_reflection_on_a_success_or_without_the_guide_there_are_no_hints():
    def failing(question):
        return JudgeError("down") if "ended:\nsuccess" in question else "1. I went to the desk."

    found, asked = gathered(kitchen(), feedback("guide"), failing)
    assert len(asked) == 3 and found.texts == {} and [failure.kind for failure in found.failures] == ["judge"]
    found, asked = gathered(
        kitchen(), feedback("guide"), lambda question: "" if "DO:" in question else "1. a"
    )
    assert len(asked) == 4 and found.texts == {} and found.unreadable == 1
