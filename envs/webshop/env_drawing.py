"""Draws WebShop's pages: results, a product, the receipt."""

from __future__ import annotations

import re
from collections.abc import Sequence

from hindsight.envs.drawing import Block, text_blocks
from hindsight.envs.webshop.pages import SEPARATOR

ASIN = re.compile(r"[A-Z0-9]{10}")
COUNT = re.compile(r"Page \d+ \(Total results: \d+\)")
BACK, PREVIOUS, NEXT = "Back to Search", "< Prev", "Next >"
PRODUCT = ["Description", "Features", "Reviews", "Buy Now"]  # the buttons at the end of a product's page
RECEIPT = "Thank you for shopping with us!"
STARTS = (f"Instruction:{SEPARATOR}", f"WebShop{SEPARATOR}")  # of a page, which may follow a complaint


def blocks(observation: str, action: str, feedback: str) -> list[Block]:
    """The interface of `hindsight.envs.drawing`."""
    return [*_draw(observation), *text_blocks(action), *_draw(feedback)]


def _draw(words: str) -> list[Block]:
    # The complaint comes first, and may quote anything that the agent wrote: the page is what starts last.
    at = max(words.rfind(f"\n{start}") for start in STARTS) + 1
    page = _page(words[at:].split(SEPARATOR))
    return [*text_blocks(words[:at].strip()), *page] if page else text_blocks(words)


def _page(parts: Sequence[str]) -> list[Block]:
    """The page's blocks; none if it is no page."""
    match parts:
        case ["WebShop", "Instruction:", wish, "Search"]:
            return [*text_blocks(wish), _block("WebShop", buttons=["Search"])]
        case ["Instruction:", wish, back, count, *rest] if back == BACK and COUNT.fullmatch(count):
            results = _results(count, rest)
            return [*text_blocks(wish), results] if results else []
        case ["Instruction:", wish, back, previous, *rest] if (back, previous) == (BACK, PREVIOUS):
            return [*text_blocks(wish), *_product(rest)]
        case [first, *rest] if first == RECEIPT:
            return [{"kind": "list", "title": RECEIPT, "items": rest}]
    return []


def _results(title: str, parts: Sequence[str]) -> Block | None:
    """A page of results: buttons, then an ASIN, a name and a price per product; None if it is not."""
    turns = [part for part in parts[:2] if part in (PREVIOUS, NEXT)]
    cells = parts[len(turns) :]
    rows = [cells[at : at + 3] for at in range(0, len(cells), 3)]
    if any(len(row) < 3 or not ASIN.fullmatch(row[0]) for row in rows):
        return None
    items = [dict(zip(("id", "title", "price"), row, strict=True)) for row in rows]
    return _block(title, items, [BACK, *turns])


def _product(parts: Sequence[str]) -> list[Block]:
    """A product's page, or one with more about it."""
    end = len(parts) - 1 if parts and parts[-1].startswith("You have chosen ") else len(parts)
    head, chosen = parts[: end - len(PRODUCT)], parts[end:]
    match list(parts[end - len(PRODUCT) : end]), head:
        case buttons, [*options, name, price, rating] if buttons == PRODUCT and price.startswith("Price: "):
            facts = text_blocks("\n".join([price, rating, *chosen]))
            listed = [{"kind": "list", "title": "Options", "items": options}] if options else []
            return [_block(name, buttons=[BACK, PREVIOUS, *PRODUCT]), *facts, *listed]
    return [_block("", buttons=[BACK, PREVIOUS]), *(block for part in parts for block in text_blocks(part))]


def _block(title: str, items: Sequence[dict[str, str]] = (), buttons: Sequence[str] = ()) -> Block:
    return {"kind": "page", "title": title, "items": list(items), "buttons": list(buttons)}
