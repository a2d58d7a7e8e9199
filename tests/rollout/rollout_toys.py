"""Small tokenizers, scripted engines and a toy world for the rollout tests."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from types import SimpleNamespace

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from hindsight.envs.base import Observation, StepResult, Verdict
from hindsight.envs.runtime.shard import Lease
from hindsight.envs.tasks import TaskSpec
from hindsight.rollout.types import Generation

CHATML = (
    "{% for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
HEADERS = (  # begins with a BOS token and trims
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|head|>' + m['role'] + '<|/head|>\n\n' + m['content'] | trim + '<|eot|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|head|>assistant<|/head|>\n\n' }}{% endif %}"
)
INST = (  # no system role, tags that are plain text, no mark for the assistant's turn
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + '</s>' }}"
    "{% else %}{{ raise_exception('no system role') }}{% endif %}{% endfor %}"
)
FORGETS_THOUGHTS = (  # shows the reasoning of the last turn only
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' and not loop.last %}{{ m['content'].split('</think>')[-1] }}"
    "{% else %}{{ m['content'] }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
FILLS_IN_THOUGHTS = (  # gives the last turn an empty thought, or spreads out its own; earlier turns get none
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}"
    "{% if loop.last %}"
    "{{ '<think>\n' + m['content'].split('</think>')[0].split('<think>')[1:] | join + '\n</think>\n' }}"
    "{% endif %}{{ m['content'].split('</think>')[-1] }}{% else %}{{ m['content'] }}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
NO_ENDING = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
TEMPLATES = {"chatml": CHATML, "headers": HEADERS, "inst": INST}
SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|head|>", "<|/head|>", "<|eot|>"]
CORPUS = [
    "You are in the middle of a room. Looking quickly around you, you see a cabinet 1 and a fridge 1.",
    "Your task is to: put a clean mug in cabinet. <think>I look</think><action>go to cabinet 1</action>",
    "<action>open fridge 1</action> <action>take mug 1</action> Nothing happens. Actions: look, inventory",
] * 4


def make_tokenizer(template: str | None) -> PreTrainedTokenizerFast:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(CORPUS, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", additional_special_tokens=SPECIAL[2:]
    )
    tokenizer.chat_template = template
    return tokenizer


TASK = TaskSpec("t0", "toy", "open", "train")
ROOM = Observation("A dark room. Your task is to: open the door.", ("look", "open door", "take key"), "room")


class ToySlot:
    """The door opens after the key was taken. `faults` are raised by the next resets or steps, in order;
    `verdict` is what an episode that is cut gets."""

    def __init__(self, faults: list[Exception | None] | None = None, verdict: Verdict | None = None) -> None:
        self.verdict = verdict
        self.faults = faults if faults is not None else []
        self.lease = Lease(1, 2, serial=0)
        self.key = False
        self.actions: list[str] = []

    async def reset(self, task: TaskSpec) -> Observation:
        self.key, self.actions = False, []
        return ROOM

    async def step(self, action: str) -> StepResult:
        if self.faults and (fault := self.faults.pop(0)) is not None:
            raise fault
        self.actions.append(action)
        won = action == "open door" and self.key
        self.key |= action == "take key"
        text = "You win." if won else "You hold the key." if action == "take key" else "Nothing happens."
        observation = Observation(text, ROOM.actions, f"key={self.key}")
        return StepResult(observation, text, float(won), won, False, won)

    async def finish(self) -> Verdict | None:
        return self.verdict

    async def reference(self, task: TaskSpec) -> list[str] | None:
        if self.faults and (fault := self.faults.pop(0)) is not None:
            raise fault
        return ["take key", "open door"]

    async def demonstrate(self, task: TaskSpec, seed: int, noise: float) -> str:
        if self.faults and (fault := self.faults.pop(0)) is not None:
            raise fault
        return f"demonstration {seed} {noise}"


class ToyPool:
    """Hands out fresh slots that share one list of faults."""

    def __init__(self, faults: list[Exception | None] | None = None) -> None:
        self.faults = faults or []
        self.leased = self.open = 0

    @asynccontextmanager
    async def lease(self):
        self.leased += 1
        self.open += 1
        try:
            yield ToySlot(self.faults)
        finally:
            self.open -= 1


class ToyEngine:
    """Answers with scripted texts, by turn number; keeps what it was asked."""

    def __init__(self, tokenizer, end: str, texts: list[str | Exception], delay: float = 0.0) -> None:
        self.tokenizer, self.texts, self.delay = tokenizer, texts, delay
        self.end = tokenizer.convert_tokens_to_ids(end)
        self.asked: list[tuple[np.ndarray, object]] = []
        self.answers: dict[bytes, int] = {}
        self.generate = SimpleNamespace(remote=self._generate)

    def turn_of(self, ids: np.ndarray) -> int:
        return int((ids == self.end).sum())

    async def _generate(self, ids: np.ndarray, sampling, seconds: float = 600.0) -> Generation:
        self.asked.append((ids, sampling))
        await asyncio.sleep(self.delay)
        # The system message and every user message end with the same token as a response.
        text = self.texts[(self.turn_of(ids) // 2 - 1) % len(self.texts)]
        if isinstance(text, Exception):
            raise text
        sampled = [*self.tokenizer(text, add_special_tokens=False).input_ids, self.end]
        cut = np.asarray(sampled[: sampling.max_tokens], dtype=np.int32)
        cut.flags.writeable = False  # as it comes out of the object store
        finish = "stop" if cut[-1] == self.end else "length"
        return Generation(cut, np.full(len(cut), -0.5, np.float32), finish, np.full(len(cut), 3))
