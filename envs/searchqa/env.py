"""Search-QA: a question, a search engine, a few turns, and an answer that must match exactly.

Formats and reward are those of Search-R1 (arXiv 2503.09516) and verl-agent: <search>…</search> returns
passages, <answer>…</answer> ends the episode, and the reward is exact match.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import re
import string
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hindsight.configs.schema import Env
from hindsight.configs.setting import setting
from hindsight.envs.base import DataMissing, EnvFamily, Observation, StepResult, TextEnv
from hindsight.envs.runtime.files import atomic_dir
from hindsight.envs.searchqa.corpus import (
    Dialect,
    LocalRetriever,
    Passage,
    RemoteRetriever,
    Retriever,
    read_corpus,
)
from hindsight.envs.searchqa.facts import HOPS, chains, world
from hindsight.envs.searchqa.questions import answers_of, question_file, read_questions
from hindsight.envs.tasks import Manifest, TaskSpec

RULES = (
    "You answer a question with the help of a search engine. <search>words</search> shows you the passages "
    "that fit the words best; you may search several times. Once you know, <answer>the answer</answer> ends "
    "the task. An answer is a name, a number or a few words, not a sentence."
)
UNREADABLE = "Nothing happened: reply with <search>words</search> or <answer>the answer</answer>."
NOTHING = "No passage fits."
PAGES = 10_000  # of the generated corpus, roughly
QUESTIONS = {"train": 2_000, "test": 400}  # of each number of hops, about that corpus
GENERATED = tuple(f"{hops}_hop" for hops in range(1, HOPS + 1))
OFFICIAL = ("nq", "triviaqa", "popqa", "hotpotqa", "2wikimultihopqa", "musique", "bamboogle")
ACTION = re.compile(r"<(search|answer)>(.*?)</\1>", re.DOTALL)
ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)
FORMAT = 1  # of the generated files; a change makes them anew


class SearchQAEnv(TextEnv):
    """Episodes of one reader."""

    def __init__(self, retriever: Retriever, passages: int, max_turns: int) -> None:
        """
        Args:
            passages: how many a search shows.
        """
        super().__init__(max_turns)
        self._retriever, self._passages = retriever, passages
        self._task: TaskSpec

    def _reset(self, task: TaskSpec) -> Observation:
        self._task, self._hop = task, 0
        question = task.data["question"]
        return Observation(f"Question: {question}", state_key="start", rules=RULES, goal=question)

    def _step(self, action: str) -> StepResult:
        match read_search_action(action):
            case ("search", words):
                return self._search(words)
            case ("answer", words):
                return self._answer(words)
        return StepResult(Observation(UNREADABLE, state_key=UNREADABLE), UNREADABLE, 0.0, False, False, False)

    def reference(self, task: TaskSpec) -> list[str] | None:
        """Search for each page of the chain by its title, then answer; None for official questions."""
        pages = task.data.get("pages")
        if not pages:
            return None
        searches = [f"<search>{page}</search>" for page in pages]
        return [*searches, f"<answer>{task.data['answers'][0]}</answer>"]

    def _search(self, words: str) -> StepResult:
        found = self._retriever.search(words, self._passages)
        holds = any(holds_answer(passage, self._task.data["answers"]) for passage in found)
        pages = self._task.data.get("pages", [])
        titles = {passage.title for passage in found}
        self._hop = max([self._hop, *(number for number, page in enumerate(pages, 1) if page in titles)])
        shown = write_passages(found)
        said = (
            "One of these passages contains the answer."
            if holds
            else "None of these passages has the answer."
        )
        info = {"passages": [passage.title for passage in found], "holds_answer": holds, "hop": self._hop}
        seen = Observation(shown, state_key=shown)
        return StepResult(seen, f"{shown}\n{said}", 0.0, False, False, False, info)

    def _answer(self, words: str) -> StepResult:
        answers = self._task.data["answers"]
        right = exact_match(words, answers)
        said = "The answer is right." if right else f"The answer is wrong. It is: {answers[0]}"
        info = {"answer": words, "gold": answers, "contained": contains(words, answers)}
        return StepResult(Observation(said), said, float(right), True, False, right, info)


class SearchQAFamily(EnvFamily):
    """Questions of the official data sets where configured, else about a generated world."""

    name = "searchqa"
    action_format = "search"
    turn_limit = 4
    KINDS = (*GENERATED, *OFFICIAL)

    @dataclass(frozen=True)
    class Settings(Env):
        """The section `env` for Search-QA."""

        passages: int = setting(3, "passages that a search shows", low=1)
        retriever_url: str = setting("", "server that searches the corpus (POST); empty: in memory, by BM25")
        retriever_dialect: Dialect = setting("search_r1", "interface of that server")

    settings: Settings

    def __init__(self, settings: Settings, cache: Path) -> None:
        super().__init__(settings, cache)
        self._official = Path(settings.data).expanduser().resolve() if settings.data else None
        self._retriever: Retriever | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_retriever": None}  # whoever unpickles it makes its own

    def manifest(self) -> Manifest:
        counts = (self.settings.train_tasks, self.settings.eval_tasks)
        train, evaluation = (self._draw(*drawn) for drawn in zip(QUESTIONS, counts, strict=True))
        return Manifest(train, evaluation)

    def panels(self) -> dict[str, Callable[[], tuple[TaskSpec, ...]]]:
        """`searchqa/nq` and so on: the test questions of each official data set, in the order of the file."""
        names = OFFICIAL if self._official else ()
        return super().panels() | {f"{self.name}/{kind}": partial(self._test, kind) for kind in names}

    def preload(self) -> None:
        self._open()

    def make(self) -> SearchQAEnv:
        return SearchQAEnv(self._open(), self.settings.passages, self.settings.max_turns)

    def _open(self) -> Retriever:
        if self._retriever is None:
            if self.settings.retriever_url:
                self._retriever = RemoteRetriever(
                    self.settings.retriever_url, self.settings.retriever_dialect
                )
            else:
                self._retriever = LocalRetriever(read_corpus(self._folder() / "corpus.jsonl"))
        return self._retriever

    def _folder(self) -> Path:
        return self._official or self._generated()

    def _draw(self, split: str, count: int) -> tuple[TaskSpec, ...]:
        """Up to `count` questions, drawn by the seed, as many of each kind as there are.

        Raises:
            DataMissing: there is none.
        """
        questions = self._questions(split)
        by_kind = [[task for task in questions if task.kind == kind] for kind in self.kinds]
        for own in by_kind:
            random.Random(f"{self.settings.seed} {split}").shuffle(own)
        drawn = tuple(task for row in itertools.zip_longest(*by_kind) for task in row if task)[:count]
        if not drawn:
            where = self._official or "the generated corpus (set env.data for the official questions)"
            raise DataMissing(f"{where} has no questions for {split} of {', '.join(self.kinds)}")
        return drawn

    def _test(self, kind: str) -> tuple[TaskSpec, ...]:
        """
        Raises:
            DataMissing: there is none.
        """
        found = tuple(task for task in self._questions("test") if task.kind == kind)
        if not found:
            raise DataMissing(f"{question_file(self._folder(), 'test')} has no questions of {kind}")
        return found

    def _questions(self, split: str) -> list[TaskSpec]:
        file = question_file(self._folder(), split)
        return [self._task(file, number, row) for number, row in enumerate(read_questions(file))]

    def _task(self, file: Path, number: int, row: Any) -> TaskSpec:
        """
        Raises:
            DataMissing: a row lacks a question, its answers or the name of its data set.
        """
        split = file.stem
        try:
            kind, question = row["data_source"], row["question"].strip().rstrip("?") + "?"
            answers = answers_of(row)
        except (KeyError, TypeError, AttributeError) as error:
            raise DataMissing(
                f"{file}, line {number + 1}: it must have data_source, question and answers (or "
                f"golden_answers), a list ({error!r})"
            ) from error
        data = {"question": question, "answers": answers, "pages": list(row.get("pages", []))}
        return TaskSpec(f"{split}/{number}", self.name, kind, split, data)

    def _generated(self) -> Path:
        """The folder of generated data, made by whoever asks first."""
        recipe = json.dumps([FORMAT, self.settings.seed, PAGES])
        folder = self.cache / "searchqa" / hashlib.sha256(recipe.encode()).hexdigest()[:12]
        return atomic_dir(folder, self._generate)

    def _generate(self, draft: Path) -> None:
        """Write the corpus, and QUESTIONS of each number of hops."""
        entities = world(PAGES, self.settings.seed)
        corpus = [entity.passage(number) for number, entity in enumerate(entities)]
        rows = ({"id": one.id, "contents": f'"{one.title}"\n{one.text}'} for one in corpus)
        _write(draft / "corpus.jsonl", rows)
        made: dict[str, list[dict[str, Any]]] = {split: [] for split in QUESTIONS}
        for hops, kind in enumerate(GENERATED, start=1):
            endless = chains(entities, hops, self.settings.seed)
            for split, size in QUESTIONS.items():
                for chain in itertools.islice(endless, size):
                    facts = asdict(chain)
                    answers = [facts.pop("answer")]
                    made[split].append({"data_source": kind, "answers": answers, **facts})
        for split, questions in made.items():
            _write(draft / f"{split}.jsonl", questions)


def read_search_action(action: str) -> tuple[str, str]:
    """("search" or "answer", its words), or ("", "") if it is neither."""
    found = ACTION.fullmatch(action.strip())
    return (found[1], found[2].strip()) if found and found[2].strip() else ("", "")


def write_passages(found: Sequence[Passage]) -> str:
    """What a search shows."""
    lines = [f'Doc {number}(Title: "{one.title}") {one.text}' for number, one in enumerate(found, 1)]
    shown = "\n".join(lines) or NOTHING
    return f"<information>{shown}</information>"


def normalized(text: str) -> str:
    """SQuAD's normal form: lower case, without punctuation and articles, single blanks."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def exact_match(words: str, answers: Iterable[str]) -> bool:
    """Whether an answer equals one of the gold answers in normal form."""
    return normalized(words) in map(normalized, answers)


def contains(words: str, answers: Iterable[str]) -> bool:
    """Whether a text contains one of the gold answers, as whole words in normal form."""
    padded = f" {normalized(words)} "
    return any(f" {normalized(answer)} " in padded for answer in answers if normalized(answer))


def holds_answer(passage: Passage, answers: Iterable[str]) -> bool:
    """Whether a passage contains one of the gold answers."""
    return contains(f"{passage.title} {passage.text}", answers)


def _write(file: Path, rows: Iterable[dict[str, Any]]) -> None:
    with file.open("w", encoding="utf-8") as lines:
        lines.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
