"""The shop's ranking: words by hand, scores against a plain second version."""

import math
import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from webshop_data_folder import OFFICIAL, needs_official

from hindsight.envs.lucene import Index, stored_length, terms
from hindsight.envs.webshop.data import load_shop
from hindsight.envs.webshop.env import document


def plain_ranking(counts: dict[str, Counter], query: str) -> list[tuple[float, str]]:
    """BM25 as its formula says, in double precision, over every document."""
    asked = list(terms(query))
    holding = {term: sum(term in count for count in counts.values()) for term in asked}
    mean = sum(count.total() for count in counts.values()) / len(counts)
    scores = []
    for name, count in counts.items():
        length = count.total()
        while stored_length(length) != length:
            length -= 1
        total = 0.0
        for term in asked:
            if count[term]:
                idf = math.log(1 + (len(counts) - holding[term] + 0.5) / (holding[term] + 0.5))
                total += idf * count[term] / (count[term] + 0.9 * (0.6 + 0.4 * length / mean))
        if total:
            scores.append((-total, name))
    return sorted(scores)


def check_ranking(documents: list[tuple[str, str]], queries: list[str]) -> None:
    index = Index(documents)
    counts = {name: Counter(terms(text)) for name, text in documents}
    for query in queries:
        ranking = plain_ranking(counts, query)
        score = {name: -value for value, name in ranking}
        found = index.search(query)
        assert len(found) == min(50, len(ranking))
        best = [-value for value, _ in ranking[: len(found)]]
        assert [score[name] for name in found] == pytest.approx(
            best, rel=1e-5
        )  # single precision may swap two


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Women's Running Shoes", ["women", "run", "shoe"]),
        ("the 8.5 oz., and 1,000 t-shirts", ["8.5", "oz", "1,000", "t", "shirt"]),
        ("possibly geology flies", ["possibl", "geolog", "fli"]),
        ("❤★ usb-c 3ft", ["❤", "★", "usb", "c", "3ft"]),
        ("小米 rock’n’roll", ["小", "米", "rock’n’rol"]),
        ("of the", []),
    ],
)
def test_words_are_lucenes(text, words):
    assert list(terms(text)) == words


def test_lengths_are_rounded_down_to_four_bits():
    assert [stored_length(n) for n in (0, 24, 39, 40, 41, 42, 56, 57, 59, 60, 1000)] == [
        *(0, 24, 39, 40, 40, 42, 56, 56, 56, 60, 984)
    ]


def test_scores_are_bm25s_on_random_documents():
    rng = random.Random(0)
    words = [f"word{number}" for number in range(60)]
    documents = [
        (f"B{number:03}", " ".join(rng.choices(words, weights=range(1, 61), k=rng.randint(1, 90))))
        for number in range(120)
    ]
    check_ranking(documents, [" ".join(rng.choices(words, k=rng.randint(1, 6))) for _ in range(40)])


def test_equal_scores_go_by_number_and_unknown_words_find_nothing():
    index = Index([("B2", "red lamp"), ("B1", "red lamp"), ("B3", "red lamp"), ("B0", "blue mug")])
    assert index.search("lamp") == ["B1", "B2", "B3"]
    assert index.search("sofa") == index.search("the") == index.search("") == []
    assert Index([]).search("lamp") == []


@given(st.text(max_size=200))
def test_any_text_can_be_searched(text):
    assert set(Index([("B1", text), ("B2", "lamp")]).search(text)) <= {"B1", "B2"}


@needs_official
def test_scores_are_bm25s_on_the_official_products():
    data = load_shop(Path(OFFICIAL))
    documents = [(asin, document(product)) for asin, product in data.products.items()]
    rng = random.Random(1)
    queries = [goal.instruction for goal in rng.sample(data.goals, 20)]
    check_ranking(
        documents, [*queries, *(product.name for product in rng.sample([*data.products.values()], 20))]
    )
