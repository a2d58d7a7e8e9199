"""The shop's pages as text, and where a click leads.

    start ──search──► results ──ASIN──► item ──Buy Now──► done
      ▲                 ▲  │ next/prev     │  ▲ Prev
      └─ Back to Search ┴──┴───────────────┴──┴─ description, features, reviews

The words of a page are those of upstream's `text` mode: the visible texts joined by [SEP]. Upstream shows
there nowhere which options were chosen; here a last part says so.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

from hindsight.envs.base import Observation
from hindsight.envs.webshop.data import Product

SEPARATOR = " [SEP] "
SHOWN = 10  # products on a page of results
BLANK = "<your query>"
FORM = f"search[{BLANK}]"  # how the search form is listed
BACK, PREVIOUS, NEXT, BUY = "back to search", "< prev", "next >", "buy now"
Detail = Literal["description", "features", "reviews"]
DETAILS: tuple[Detail, ...] = get_args(Detail)
ACTION = re.compile(r"\s*(search|click)\s*\[(.*)\]\s*", re.DOTALL | re.IGNORECASE)
UNSAFE = {ord(character): f"\\u{ord(character):04x}" for character in "<>&'"}  # as Jinja writes JSON


def read_shop_action(action: str) -> tuple[str, str] | None:
    """("search" or "click", its words in lower case), or None where it is neither or has no words."""
    found = ACTION.fullmatch(action)
    words = found[2].strip().lower() if found else ""
    return (found[1].lower(), words) if found and words not in ("", BLANK) else None


@dataclass(frozen=True)
class Page(Observation):
    """A page as the agent sees it: the shop reads actions in any case, and searches from every page."""

    def admits(self, action: str) -> bool:
        match read_shop_action(action):
            case ("click", words):
                return f"click[{words}]" in self.actions
            case ("search", _):
                return bool(self.actions)
        return False


@dataclass(frozen=True)
class ShopPlace:
    """Where a customer is."""

    page: Literal["start", "results", "item", "done"] | Detail = "start"
    query: str = ""
    number: int = 1  # page of results
    found: tuple[str, ...] = ()  # what the search found, best first
    asin: str = ""  # the product that is open
    chosen: tuple[tuple[str, str], ...] = ()  # (option, value), in the order of first choice

    def listed(self) -> tuple[str, ...]:
        """The ASINs on this page of results."""
        return self.found[(self.number - 1) * SHOWN : self.number * SHOWN]


def clickables(place: ShopPlace, products: Mapping[str, Product]) -> tuple[str, ...]:
    """What can be clicked, in lower case."""
    if place.page == "results":
        pages = (PREVIOUS, NEXT) if place.number > 1 else (NEXT,)
        return (BACK, *pages, *(asin.lower() for asin in place.listed()))
    if place.page == "item":
        values = itertools.chain(*products[place.asin].options.values())
        return tuple(dict.fromkeys((BACK, PREVIOUS, *DETAILS, BUY, *values)))
    return (BACK, PREVIOUS) if place.page in DETAILS else ()


def follow_link(place: ShopPlace, clicked: str, products: Mapping[str, Product]) -> ShopPlace:
    """The place that clicking one of the `clickables` leads to."""
    if clicked == BUY:
        return replace(place, page="done")
    if clicked == BACK:
        return ShopPlace()
    if place.page == "results":
        if clicked in (PREVIOUS, NEXT):
            return replace(place, number=place.number + (1 if clicked == NEXT else -1))
        asin = next(asin for asin in place.listed() if asin.lower() == clicked)
        return replace(place, page="item", asin=asin)
    if clicked == PREVIOUS:
        if place.page in DETAILS:
            return replace(place, page="item")
        return replace(place, page="results", asin="", chosen=())
    if clicked in DETAILS:
        return replace(place, page=clicked)
    options = products[place.asin].options
    option = [name for name, values in options.items() if clicked in values][-1]
    return replace(place, chosen=tuple({**dict(place.chosen), option: clicked}.items()))


def page_text(
    place: ShopPlace, products: Mapping[str, Product], instruction: str, reward: float = 0.0
) -> str:
    """The page in words.

    Args:
        reward: the score of the purchase, shown when it is done.
    """
    if place.page == "done":
        return SEPARATOR.join(_receipt(place, reward))
    head = ["Instruction:", instruction]
    if place.page == "start":
        return SEPARATOR.join(["WebShop", *_visible(*head), "Search"])
    parts = [*_visible(*head), "Back to Search"]
    if place.page == "results":
        parts += [f"Page {place.number} (Total results: {len(place.found)})"]
        parts += ["< Prev", "Next >"] if place.number > 1 else ["Next >"]
        for product in map(products.__getitem__, place.listed()):
            parts += _visible(product.asin, product.name, product.price_tag)
        return SEPARATOR.join(parts)
    parts += ["< Prev", *_visible(*_about(place, products[place.asin]))]
    if place.chosen:
        parts += ["You have chosen " + ", ".join(f"{option}: {value}" for option, value in place.chosen)]
    return SEPARATOR.join(parts)


def _about(place: ShopPlace, product: Product) -> list[str]:
    match place.page:
        case "description":
            return [product.description]
        case "features":
            return [f" {bullet}" for bullet in product.bullets]
        case "reviews":
            return []  # upstream's data come without them
    options = [part for name, values in product.options.items() for part in (name, *values)]
    price = f"Price: {product.price_tag}"
    buttons = ["Description", "Features", "Reviews", "Buy Now"]
    return [*options, product.name, price, "Rating: N.A.", *buttons]


def _receipt(place: ShopPlace, reward: float) -> list[str]:
    """The last page, with the fields that upstream's text mode leaves empty."""
    chosen = json.dumps(dict(place.chosen), sort_keys=True).translate(UNSAFE)
    return [
        *("Thank you for shopping with us!", "Your code:", "None", "(Paste it in your MTurk interface.)"),
        *("Purchased", "asin", place.asin, "options", chosen, "attrs", "None", "category", "None"),
        *("query", "None", "product category", "None"),
        *("Target", "asin", "options", "attrs", "price upper", "instuction text", "category"),
        *("product category", "query", "Goal", "None"),
        *("Reward", "Your score (min 0.0, max 1.0)", str(reward), "Reward Details", "None"),
    ]


def _visible(*texts: str) -> list[str]:
    """Texts as they come out of HTML: nothing is left of an empty one or of one of blank lines alone."""
    return [text.strip() for text in texts if text and (text.strip() or "\n" not in text)]
