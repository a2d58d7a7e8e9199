"""A customer who sees what an agent sees: the instruction and the pages, nothing of the goal behind them.

    start ──the instruction's words──► results ──next one not yet opened──► item ──does it fit? buy it
                                          ▲                                  │ no
                                          └───────────── Prev ───────────────┘

An item fits when it has every option asked for, keeps the price, and its title, features and description
name most words of the instruction. When turns run short, the best item so far is bought. What to do is
decided from the page and from what was read before, so that a step taken by chance does no harm.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from hindsight.envs.lucene import terms
from hindsight.envs.webshop.pages import BACK, BUY, FORM, NEXT, PREVIOUS, SEPARATOR, Page

PRICE = re.compile(r", and price lower than ([\d.]+) dollars$")
OPTIONS = re.compile(r" with ((?:(?! with )[^:])+: .*)$")  # " with color: blue, and size: 9"
ANOTHER = re.compile(r", and (?=[^:,]+: )")
OPENING = re.compile(
    r"^(find me|i am looking for|i'm looking for|i need|i want|i would like)\s+", re.IGNORECASE
)
DOLLARS = re.compile(r"\$([\d.]+)")
FEW = 0.3  # share of the instruction's words below which a list of products answers another search
MOST = 0.7  # share of them from which on an item fits
PAGES = 3  # of results that are looked at
READ = ("features", "description")


@dataclass
class Item:
    """What is known of a product."""

    asin: str = ""  # as it is clicked; "" before it was seen in a list
    page: int = 1  # of the results it was listed on
    dear: bool = False  # its price is, or may be, above the limit
    opened: bool = False
    offered: int = 0  # how many of the options asked for it has
    words: set[str] = field(default_factory=set)  # of its texts, as far as they were read
    unread: list[str] = field(default_factory=lambda: list(READ))


class Shopper:
    """Decides on one action after another, for one instruction."""

    def __init__(self, instruction: str, turns: int) -> None:
        """
        Args:
            turns: the limit of the episode.
        """
        price = PRICE.search(instruction)
        self._limit = float(price[1]) if price else float("inf")
        text = OPENING.sub("", PRICE.sub("", instruction))
        found = OPTIONS.search(text)
        pairs = [part.partition(": ") for part in ANOTHER.split(found[1])] if found else []
        self._options = {name: value for name, _, value in pairs}
        # Option values set alike products apart, so they are said twice.
        self._query = " ".join([text, *self._options.values()])
        self._wanted = {*terms(OPTIONS.sub("", text))}
        self._asked = {*terms(text)}  # the options' words too
        self._turns = turns  # left
        self._items: dict[str, Item] = {}  # by title
        self._open = ""  # title of the item whose pages are open
        self._settled = ""  # title of the item that is to be bought
        self._again = False  # whether a list was left for a new search

    def act(self, page: Page) -> str:
        """The next action, from what `page` shows."""
        self._turns -= 1
        parts = page.state_key.split(SEPARATOR)
        if FORM in page.actions:
            return f"search[{self._settled or self._query}]"
        if f"click[{BUY}]" in page.actions:
            return f"click[{self._at_item(parts, page.actions)}]"
        if f"click[{NEXT}]" in page.actions:
            return f"click[{self._at_results(parts, page.actions)}]"
        self._item(self._open).words |= {*terms(" ".join(parts[4:]))}
        return f"click[{PREVIOUS}]"

    def _at_results(self, parts: list[str], actions: Collection[str]) -> str:
        """What to click on a list of products."""
        number = int(parts[3].split()[1])
        listed = []
        for asin, title, price in zip(parts, parts[1:], parts[2:], strict=False):
            if f"click[{asin.lower()}]" in actions and DOLLARS.match(price):
                item = self._item(title)
                item.asin, item.page = asin.lower(), number
                item.dear = self._dear(price)
                item.words |= {*terms(title)}
                listed.append(title)
        best, last = self._best(), number >= PAGES or not listed
        fresh = [title for title in listed if not (self._items[title].opened or self._items[title].dear)]
        time = self._turns > len(self._options) + 4  # to open one more, return and buy another
        if best and (self._settled or not time or (last and not fresh)):
            self._settled = best
            if best in listed:
                return self._items[best].asin
            return BACK if not listed or self._items[best].page == number else NEXT if not last else BACK
        if max(map(self._share, listed), default=0.0) < FEW and not self._again:
            self._again = True
            return BACK
        if not fresh:
            return BACK if last else NEXT
        return self._items[fresh[0]].asin

    def _at_item(self, parts: list[str], actions: Collection[str]) -> str:
        """What to click on a product's page."""
        end = max(number for number, part in enumerate(parts) if part.startswith("Price: "))
        self._open = title = parts[end - 1]
        item, chosen = self._item(title), f"{parts[-1]}, "
        item.opened, item.dear = True, self._dear(parts[end])
        picks = self._picks(parts[4 : end - 1], actions)
        item.words |= {*terms(" ".join([title, *picks.values()]))}
        item.offered = sum(picks.get(name) == value for name, value in self._options.items())
        missing = [value for name, value in picks.items() if f" {name}: {value}, " not in chosen]
        complete = item.offered == len(self._options) and not item.dear
        spare = self._turns - len(missing)  # turns left after choosing and buying
        if complete and self._share(title) < MOST and item.unread and spare >= 2 and not self._settled:
            return item.unread.pop(0)
        fits = complete and self._share(title) >= MOST
        if fits or self._settled == title or spare < 3 or (self._best() == title and spare < 5):
            self._settled = title
            return missing[0] if missing and self._turns else BUY
        return PREVIOUS

    def _picks(self, parts: Iterable[str], actions: Collection[str]) -> dict[str, str]:
        """For every option of a product the value asked for, or whose words the instruction has."""
        groups: dict[str, list[str]] = {}
        name = ""
        for part in parts:
            if f"click[{part}]" in actions:
                groups.setdefault(name, []).append(part)
            else:
                name = part
        picks = {}
        for name, values in groups.items():
            named = [value for value in values if (words := {*terms(value)}) and words <= self._asked]
            if self._options.get(name) in values:
                picks[name] = self._options[name]
            elif named:
                picks[name] = max(named, key=len)
        return picks

    def _item(self, title: str) -> Item:
        return self._items.setdefault(title, Item())

    def _dear(self, price: str) -> bool:
        return max(map(float, DOLLARS.findall(price)), default=0.0) > self._limit

    def _share(self, title: str) -> float:
        """How much of the instruction an item is known to name."""
        return len(self._wanted & self._items[title].words) / max(len(self._wanted), 1)

    def _best(self) -> str:
        """The title of the best item that was opened, or ""."""
        if self._settled:
            return self._settled
        opened = [title for title, item in self._items.items() if item.opened and item.asin]

        def worth(title: str) -> float:
            item = self._items[title]
            return item.offered - item.dear + 3 * self._share(title)

        return max(opened, key=worth, default="")
