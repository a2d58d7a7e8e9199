"""What stands before a task: ReAct's worked example and Reflexion's lessons. Golden files are for people."""

from __future__ import annotations

import pytest
from feedback_toys import ACTIONS, ROOM, golden, kitchen, seen
from transformers import PreTrainedTokenizerFast

from hindsight.configs.schema import Prompt
from hindsight.envs.base import Demonstration, DemoStep, Observation, StepResult
from hindsight.envs.tasks import TaskSpec
from hindsight.feedback.preamble import (
    LONGEST,
    MEMORY,
    NAMED,
    preamble,
    question,
    remember,
    thoughts,
    worked_example,
)
from hindsight.rollout.action_format import FORMS
from hindsight.rollout.conversation import Conversation
from hindsight.rollout.render import Renderer
from hindsight.rollout.vocabulary import CHATML, END, PAD, train_tokenizer

STUDY = "You are in the middle of a room. You see a shelf 1.\n\nYour task is to: put a book on the bed."
SHOWN = (  # action, result
    ("go to shelf 1", "You arrive at shelf 1. On it, you see a book 1."),
    ("take book 1 from shelf 1", "You pick up the book 1 from the shelf 1."),
    ("go to bed 1", "You arrive at bed 1. On it, you see nothing."),
    ("move book 1 to bed 1", "You move the book 1 to the bed 1."),
)
LESSONS = (
    "I looked on the desk and never opened the fridge. I will go to fridge 1 first and open it.",
    "I took the mug before the fridge was open. I will open fridge 1, then take mug 1.",
)


def demonstration():
    observation, steps = Observation(STUDY, ACTIONS), []
    for action, text in SHOWN:
        won = action == SHOWN[-1][0]
        result = StepResult(Observation(text, ACTIONS), text, float(won), won, False, won)
        steps.append(DemoStep(observation, action, action, result))
        observation = result.observation
    task = TaskSpec("study-1", "toy", "put", "train")
    return Demonstration(task, steps[0].observation, tuple(steps), True)


@pytest.fixture(scope="module")
def renderer():
    core = PreTrainedTokenizerFast(
        tokenizer_object=train_tokenizer(500, sentences=300), eos_token=END, pad_token=PAD
    )
    core.chat_template = CHATML
    return Renderer(core, Prompt(), context=4096)


@pytest.mark.parametrize(("policy", "lessons"), [("react", ()), ("reflexion", LESSONS)])
def test_prompts_read_as_the_golden_files(renderer, policy, lessons):
    before = preamble(worked_example(demonstration(), renderer.form, 4000), lessons)
    _, context = Conversation(renderer, before).prompt(seen(ROOM))
    assert renderer.decode(context) + "\n" == golden(f"prompt_{policy}")


def test_the_question_reads_as_the_golden_file():
    assert question(kitchen().trajectories[0]).write(12_000) + "\n" == golden("question_reflexion")


def test_a_lesson_is_drawn_from_what_the_agent_saw_alone():
    """The benchmark's own information and reward would tell of the hidden state."""
    asked = question(kitchen().trajectories[2]).write(12_000)
    assert "0.25" not in asked and "reward" not in asked.lower()
    assert '"steps"' not in question(kitchen().trajectories[0]).write(12_000)


def test_nothing_stands_before_the_students_task(renderer):
    assert preamble("", ()) == ""
    _, context = Conversation(renderer, "").prompt(seen(ROOM))
    assert context.tolist() == renderer.start(seen(ROOM)).tolist()


@pytest.mark.parametrize("form", FORMS)
def test_every_answer_of_an_example_can_be_read(form):
    written = {
        "tools": '<tool_call>\n{"name": "look", "arguments": {}}\n</tool_call>',
        "search": "<search>a</search>",
    }
    action = written.get(form, "look(1)")
    step = demonstration().steps[0]
    shown = Demonstration(
        TaskSpec("t", "toy", "k", "train"),
        step.observation,
        (DemoStep(step.observation, action, action, step.result),),
        True,
    )
    answer = worked_example(shown, FORMS[form], 4000).partition("Answer: ")[2]
    span = FORMS[form].find(answer)
    assert span is not None and answer[span.start : span.end] == action


def test_thoughts_name_what_is_seen_and_what_is_sought_and_stay_short():
    first, second = thoughts(["A room.\n\nYour task is to: rest.\n", "A bed 1.\nIt is  soft."])
    assert first == "To do: Your task is to: rest."
    assert second == "I see: A bed 1. It is soft. To do: Your task is to: rest."
    [_, long] = thoughts(["Rest.", "word " * 500])
    assert len(long) == len("I see:  To do: Rest.") + NAMED


def test_long_examples_are_cut_in_the_middle_of_their_observations():
    short = worked_example(demonstration(), FORMS["tags"], 80)
    observed = [line.removeprefix("Observation: ") for line in short.splitlines() if line[:4] == "Obse"]
    assert sum(map(len, observed)) <= 80 and " … " in short
    assert all(f"<action>{action}</action>" in short for action, _ in SHOWN)


def test_the_memory_holds_the_latest_lessons():
    memory = ()
    for number in range(MEMORY + 2):
        memory = remember(memory, f"<think>hm</think> Lesson\n {number}. ")
    assert memory == tuple(f"Lesson {number}." for number in range(2, MEMORY + 2))
    assert remember(memory, " <think>no words") == memory
    [long] = remember((), "word " * 500)
    assert len(long.split()) == LONGEST + 1 and long.endswith("word …")
