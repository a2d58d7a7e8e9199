"""WebShop's own data files: products, and the goals that follow from them.

    items_shuffle*.json ──► products ─┐
    items_ins_v2*.json ──► what to ask for ─┴─► goals, in upstream's order (test: the first 500)
    items_human_ins.json (optional) ──► goals worded by people

Upstream draws prices and price limits from the global generator, unseeded, and then shuffles the goals with a
fixed seed. Here the draws come in the same order from a generator of their own: upstream has these very goals
if `random.seed(PRICE_SEED)` is called before it loads.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hindsight.envs.base import DataMissing

PRICE_SEED = 0
SHUFFLE_SEED = 233  # upstream's
TEST_GOALS = 500  # goals 0 … 499 are the test set, training begins at 500
NO_LIMIT = 1_000_000.0  # the price limit of a goal that names none
STEPS = [10.0 * tens for tens in range(1, 100)]  # what price limits are drawn from, dollars
FILES = (("items_shuffle_1000.json", "items_ins_v2_1000.json"), ("items_shuffle.json", "items_ins_v2.json"))
HUMAN = "items_human_ins.json"
CHUNK = 1 << 24  # characters read at once
BETWEEN = re.compile(r"[\s,]*")  # the objects of an array
HOW = (
    f"put {' and '.join(FILES[0])} (1,000 products) or {' and '.join(FILES[1])} (all) from WebShop's "
    "download into one folder and set env.data to it, or leave env.data empty for generated products"
)


@dataclass(frozen=True, slots=True)
class Product:
    """One article of the shop."""

    asin: str
    name: str
    description: str
    bullets: tuple[str, ...]
    price: float  # dollars; drawn where the shop gives a range
    price_tag: str  # as shown
    options: dict[str, tuple[str, ...]]  # option → its values, lower-case
    attributes: tuple[str, ...]  # what the reward compares; never shown
    category: str  # of five
    path: str  # category path, parts separated by "›"
    query: str  # the search that the article was found by


@dataclass(frozen=True, slots=True)
class Goal:
    """What a customer wants."""

    asin: str  # the article it was made from
    instruction: str
    attributes: tuple[str, ...]
    options: tuple[str | tuple[str, str], ...]  # (option, value), or what a person wrote
    price_limit: float


@dataclass(frozen=True)
class Data:
    """A folder's products and goals."""

    products: dict[str, Product]  # by ASIN, in the file's order
    goals: tuple[Goal, ...]
    digest: str  # content hash of the files


def data_files(folder: Path) -> tuple[Path, Path]:
    """The product file and the instruction file; the small pair where both are there.

    Raises:
        DataMissing: the folder has neither pair.
    """
    for names in FILES:
        products, instructions = (folder / name for name in names)
        if products.is_file() and instructions.is_file():
            return products, instructions
    raise DataMissing(f"{folder} holds no WebShop data: {HOW}")


def load_shop(folder: Path, human: bool = False) -> Data:
    """Read a folder of official (or equally formed) data.

    Args:
        human: goals worded by people instead of synthetic ones.

    Raises:
        DataMissing: files are missing or are not WebShop's.
    """
    products_file, instructions_file = data_files(folder)
    if human and not (folder / HUMAN).is_file():
        raise DataMissing(f"{folder} holds no {HUMAN}, which env.goals=human needs")
    digest = hashlib.sha256()
    rng = random.Random(PRICE_SEED)
    try:
        asked = _read(instructions_file, digest)
        worded = _read(folder / HUMAN, digest) if human else {}
        products: dict[str, Product] = {}
        for item in _stream(products_file, digest):
            asin = item["asin"]
            if asin != "nan" and len(asin) <= 10 and asin not in products:
                products[asin] = _product(item, asked.get(asin, {}).get("attributes", ("DUMMY_ATTR",)), rng)
        goals = list(_human(products, worded, rng) if human else _synthetic(products, asked, rng))
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise DataMissing(f"{folder} holds files that are not WebShop's ({error!r}): {HOW}") from error
    random.Random(SHUFFLE_SEED).shuffle(goals)
    return Data(products, tuple(goals), digest.hexdigest()[:12])


def _read(file: Path, digest: Any) -> dict[str, Any]:
    content = file.read_bytes()
    digest.update(content)
    return json.loads(content)


def _stream(file: Path, digest: Any) -> Iterator[dict[str, Any]]:
    """The objects of a JSON array, one by one: the full product file has 5 GB.

    Raises:
        ValueError: it is no array of objects.
    """
    decoder = json.JSONDecoder()
    with file.open(encoding="utf-8") as stream:
        text = stream.read(CHUNK)
        digest.update(text.encode())
        if not text.lstrip().startswith("["):
            raise ValueError(f"{file.name} is no JSON array")
        at = text.index("[") + 1
        while True:
            if between := BETWEEN.match(text, at):
                at = between.end()
            if text.startswith("]", at):
                return
            try:
                item, at = decoder.raw_decode(text, at)
            except json.JSONDecodeError:
                more = stream.read(CHUNK)
                if not more:
                    raise
                digest.update(more.encode())
                text, at = text[at:] + more, 0
            else:
                yield item


def _product(item: dict[str, Any], attributes: Iterable[str], rng: random.Random) -> Product:
    bullets = item["small_description"]
    prices = [float(re.sub(r"[^\d.]", "", part)) for part in (item.get("pricing") or "$100.0").split("$")[1:]]
    options = {
        name.lower(): tuple(value["value"].strip().replace("/", " | ").lower() for value in values)
        for name, values in (item["customization_options"] or {}).items()
        if values is not None
    }
    return Product(
        asin=item["asin"],
        name=item["name"],
        description=item["full_description"],
        bullets=tuple(bullets) if isinstance(bullets, list) else (bullets,),
        price=prices[0] if len(prices) == 1 else rng.uniform(*prices[:2]),
        price_tag=" to ".join(f"${price}" for price in prices[:2]),
        options=options,
        attributes=tuple(attributes),
        category=item["category"],
        path=item["product_category"],
        query=item["query"].lower().strip(),
    )


def _limit(price: float, rng: random.Random) -> tuple[float, str]:
    """A price limit above `price`, and the words that ask for it."""
    above = [step for step in STEPS if step > price][:4]
    if len(above) < 2:
        return NO_LIMIT, ""
    limit = max(rng.sample(above, 2))
    return limit, f", and price lower than {limit:.2f} dollars"


def _synthetic(products: dict[str, Product], asked: dict[str, Any], rng: random.Random) -> Iterator[Goal]:
    """One goal for every combination of option values of every product that has an instruction."""
    for asin, product in products.items():
        wish = asked.get(asin, {})
        if wish.get("instruction") is None:
            continue
        limit, price_text = _limit(product.price, rng)
        names = sorted(product.options)
        for values in itertools.product(*(product.options[name] for name in names)):
            options = tuple(zip(names, values, strict=True))
            listed = ", and ".join(f"{name}: {value}" for name, value in options)
            text = wish["instruction"] + (f" with {listed}" if listed else "") + price_text
            yield Goal(asin, text, tuple(wish["instruction_attributes"]), options, limit)


def _human(products: dict[str, Product], worded: dict[str, Any], rng: random.Random) -> Iterator[Goal]:
    for asin, product in products.items():
        for wish in worded.get(asin, ()):
            if not wish["instruction_attributes"]:
                continue
            limit, price_text = _limit(product.price, rng)
            text = wish["instruction"].strip(".") + price_text
            attributes, options = wish["instruction_attributes"], wish["instruction_options"]
            yield Goal(asin, text, tuple(attributes), tuple(options), limit)
