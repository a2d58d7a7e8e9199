"""The tokenizer of the random embedded models: a small byte-level BPE trained on synthetic household text.

The text uses the object, receptacle and goal names in the alfworld package. This makes words of ALFWorld and
of the prompts single tokens without a download.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# A tag, a word, one digit, or a run of punctuation or whitespace. A word includes the space before it.
WORDS = r"</?[a-z_]+>| ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}<]+|<|\s+(?!\S)|\s"

FRAMES = (
    "-= Welcome to TextWorld, ALFRED! =-\n\nYou are in the middle of a room. Looking quickly around "
    "you, you see a {r} 1, a {r} 2, and a {r} 3.\n\nYour task is to: {g}.",
    "You arrive at {r} 1. On the {r} 1, you see a {o} 1, a {o} 2, and a {o} 3.",
    "You arrive at {r} 2. The {r} 2 is closed. On the {r} 4, you see nothing.",
    "You open the {r} 3. The {r} 3 is open. In it, you see a {o} 1, an {o} 2.",
    "You close the {r} 5. You pick up the {o} 6 from the {r} 7. You move the {o} 8 to the {r} 9.",
    "You heat the {o} 1 using the {r} 1. You cool the {o} 1 using the {r} 1.",
    "You clean the {o} 1 using the {r} 1. You turn on the {o} 1. You slice the {o} 1 with the {o} 2.",
    "You are carrying: a {o} 1. You are not carrying anything. Nothing happens.",
    "You are facing the {r} 1. Next to it, you see nothing. There's nothing special about {o} 1.",
    "This is a hot and clean sliced {o}. This is a cool {o}. This is a cold {o}. This {o} is on.",
    "{r}\n{o}\n{o}\n",
    "<action>go to {r} 1</action>",
    "<action>open {r} 2</action><action>close {r} 3</action>",
    "<action>take {o} 1 from {r} 4</action>",
    "<action>move {o} 1 to {r} 5</action>",
    "<action>put {o} 1 in/on {r} 6</action>",
    "<action>heat {o} 1 with {r} 1</action><action>cool {o} 1 with {r} 1</action>",
    "<action>clean {o} 1 with {r} 1</action><action>slice {o} 1 with {o} 1</action>",
    "<action>use {o} 1</action><action>examine {o} 1</action><action>look</action><action>inventory</action>",
    "<think>I need to find a {o}. I should check the {r} first, then take it to the {r}.</think>",
    "system\nYou act in a text world to finish a task, one action per turn. Pick the action from the "
    "listed ones and copy it exactly.\nuser\nassistant\n",
    "Reply with your action only: <action>your action</action>",
    "Reply with a short thought, then one action: <think>your thought</think><action>your action</action>",
    "Your reply contained no action of the form <action>…</action>.",
    "Steps taken so far: 3\nStep 3 observation: \nStep 3 action: (none)\nStep 4, now: ",
    "Actions: go to {r} 1, open {r} 2, close {r} 3, examine {r} 1, look, inventory",
    "Feedback on the action taken at this step:\nNothing happens.\n\nNow solve the current task correctly.",
)


def household_text(sentences: int, seed: int = 0) -> Iterator[str]:
    """Yield `sentences` texts in the style of ALFWorld's observations and actions and an agent's prompts."""
    from alfworld.gen import constants, goal_library

    draw = random.Random(seed)
    names = {
        "r": sorted(name.lower() for name in constants.RECEPTACLES),  # sets have no fixed order
        "o": sorted(name.lower() for name in constants.OBJECTS),
    }
    goals = sorted({text for goal in goal_library.gdict.values() for text in goal.get("templates", [])})
    for index in range(sentences):
        text = FRAMES[index % len(FRAMES)].replace("{g}", draw.choice(goals))
        for slot in ("{o}", "{r}", "{obj}", "{recep}", "{mrecep}", "{toggle}"):
            while slot in text:
                text = text.replace(
                    slot, draw.choice(names["r" if slot in ("{r}", "{recep}", "{mrecep}") else "o"]), 1
                )
        yield text


def train_tokenizer(vocabulary: int, sentences: int = 12_000) -> Tokenizer:
    """Train a byte-level BPE of at most `vocabulary` tokens, with the ChatML tokens as ids 0, 1 and 2."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[AddedToken(token, special=True) for token in (PAD, START, END)],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(household_text(sentences), trainer)
    return tokenizer
