"""A generated corpus and questions of one to three hops, for machines that have neither wiki-18 nor an index.

Each entity has one page of a few sentences, each sentence a relation. A question names an entity and follows
relations: "Which country is the city in which the director of the film Vela was born in?" All titles differ,
no relation has two values, and no answer occurs in its question.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from hindsight.envs.searchqa.corpus import Passage

HOPS = 3
MISSES = 1_000
SHARES = {"country": 1, "city": 6, "person": 40, "university": 4, "company": 9, "film": 20, "novel": 20}
# type → relation → (type of its value, or "year", "word"; a sentence; a noun phrase)
RELATIONS = {
    "country": {
        "ruler": ("person", "It is ruled by {}.", "the ruler of {}"),
        "language": ("word", "People there speak {}.", "the language spoken in {}"),
    },
    "city": {
        "country": ("country", "It lies in the country of {}.", "the country of {}"),
        "river": ("word", "The river {} flows through it.", "the river that flows through {}"),
        "founded": ("year", "It was founded in {}.", "the year of foundation of {}"),
    },
    "person": {
        "birthplace": ("city", "This person was born in the city of {}.", "the city of birth of {}"),
        "studied": ("university", "The years of study were spent at {}.", "the university of {}"),
        "born": ("year", "The year of birth was {}.", "the year of birth of {}"),
    },
    "university": {
        "city": ("city", "It is in the city of {}.", "the city of {}"),
        "founder": ("person", "Its founder was {}.", "the founder of {}"),
        "opened": ("year", "It opened in {}.", "the year of opening of {}"),
    },
    "company": {
        "seat": ("city", "Its headquarters are in the city of {}.", "the city of the headquarters of {}"),
        "chief": ("person", "It is led by {}.", "the leader of {}"),
        "product": ("word", "It became known for a product called {}.", "the best known product of {}"),
    },
    "film": {
        "director": ("person", "It was directed by {}.", "the director of {}"),
        "producer": ("company", "It was produced by {}.", "the producer of {}"),
        "released": ("year", "It was released in {}.", "the year of release of {}"),
    },
    "novel": {
        "author": ("person", "It was written by {}.", "the author of {}"),
        "publisher": ("company", "It was published by {}.", "the publisher of {}"),
        "published": ("year", "It appeared in {}.", "the year of publication of {}"),
    },
}
SUBJECTS = {"person": "{}", "university": "{}"}  # of the others: "the film {}"
CONSONANTS, VOWELS, ENDS = "bdfgklmnprstvz", "aeiou", ("", "", "l", "n", "r", "s")


@dataclass(frozen=True)
class Entity:
    """One page of the corpus."""

    kind: str
    title: str
    values: dict[str, str]  # relation → title of another entity, a year or a word

    def passage(self, number: int) -> Passage:
        """Its page."""
        said = (sentence.format(self.values[name]) for name, (_, sentence, _) in RELATIONS[self.kind].items())
        return Passage(str(number), self.title, f"{self.title} is a {self.kind}. {' '.join(said)}")

    @property
    def subject(self) -> str:
        """How a question names it."""
        return SUBJECTS.get(self.kind, f"the {self.kind} {{}}").format(self.title)


@dataclass(frozen=True)
class Chain:
    """A question, its answer, and the pages that answer it in order."""

    question: str
    answer: str
    pages: tuple[str, ...]  # titles


def world(pages: int, seed: int) -> list[Entity]:
    """Entities with every relation filled in, about `pages` of them."""
    rng = random.Random(f"world {seed}")
    counts = {kind: max(3, pages * share // sum(SHARES.values())) for kind, share in SHARES.items()}
    names = _names(rng)
    titles = {kind: [_title(kind, names) for _ in range(count)] for kind, count in counts.items()}

    def value(target: str) -> str:
        if target == "year":
            return str(rng.randrange(1700, 2020))
        return next(names) if target == "word" else rng.choice(titles[target])

    return [
        Entity(kind, title, {name: value(target) for name, (target, _, _) in RELATIONS[kind].items()})
        for kind in titles
        for title in titles[kind]
    ]


def chains(entities: list[Entity], hops: int, seed: int) -> Iterator[Chain]:
    """Different questions of `hops` hops; the order depends on the seed alone. Ends when MISSES in a row are
    repetitions: a small world has few questions.
    """
    rng, by_title = random.Random(f"chains {hops} {seed}"), {entity.title: entity for entity in entities}
    asked, misses = set(), 0
    while misses < MISSES:
        entity = rng.choice(entities)
        phrase, pages, answer = entity.subject, [], ""
        for hop in range(hops):
            pages.append(entity.title)
            last = hop == hops - 1
            open_ = [
                name for name, (target, _, _) in RELATIONS[entity.kind].items() if last or target in RELATIONS
            ]
            name = rng.choice(open_)
            phrase, answer = RELATIONS[entity.kind][name][2].format(phrase), entity.values[name]
            if not last:
                entity = by_title[answer]
        if phrase in asked or answer in phrase or len(set(pages)) < hops:
            misses += 1
            continue
        asked.add(phrase)
        misses = 0
        yield Chain(f"What is {phrase}?", answer, tuple(pages))


def _names(rng: random.Random) -> Iterator[str]:
    """Invented words that all differ."""
    used: set[str] = set()
    while True:
        parts = [
            rng.choice(CONSONANTS) + rng.choice(VOWELS) + rng.choice(ENDS) for _ in range(rng.choice((2, 3)))
        ]
        name = "".join(parts).capitalize()
        if name not in used:
            used.add(name)
            yield name


def _title(kind: str, names: Iterator[str]) -> str:
    if kind == "person":
        return f"{next(names)} {next(names)}"
    return f"University of {next(names)}" if kind == "university" else next(names)
