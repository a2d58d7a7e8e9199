"""A three-product shop written out by hand, and the official data where a variable names them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

VARIABLE = "HINDSIGHT_WEBSHOP_DATA"
OFFICIAL = os.environ.get(VARIABLE)
needs_official = pytest.mark.skipif(
    not OFFICIAL, reason=f"{VARIABLE} names no folder with WebShop's official 1,000 products"
)


def item(asin: str, name: str, **fields: Any) -> dict[str, Any]:
    return {
        "asin": asin,
        "name": name,
        "full_description": "",
        "small_description": [""],
        "pricing": "$10.00",
        "images": [""],
        "customization_options": "",
        "product_category": "Home › Lamps",
        "category": "garden",
        "query": "lamps",
        **fields,
    }


def options(**values: list[str]) -> dict[str, Any]:
    return {name: [{"value": value, "image": None} for value in listed] for name, listed in values.items()}


LAMP = item(
    "B00000LAMP",
    "Acme Desk Lamp",
    full_description="A lamp for reading. It dims.",
    small_description=["Dimmable light ", "", "Made of steel"],
    pricing="$19.99 - $1,027.50",
    customization_options=options(Color=["Navy Blue", "228blue", "Red/White"], Size=["Small", "Large"]),
)
MUG = item(
    "B000000MUG",
    "Acme Coffee Mug",
    pricing="",
    query="Mugs ",
    product_category="Kitchen › Mugs",
    category="grocery",
)
SHADE = item("B00000SHAD", "Shade", pricing="$985.00", small_description="one text, not a list")
ASKED = {
    "B00000LAMP": {
        "attributes": ["dimmable", "steel frame"],
        "instruction": "Find me dimmable lamps",
        "instruction_attributes": ["dimmable"],
    },
    "B000000MUG": {"attributes": ["dishwasher safe"]},
    "B00000SHAD": {
        "attributes": ["linen"],
        "instruction": "Find me linen lamps",
        "instruction_attributes": ["linen", "light"],
    },
}
WORDED = {
    "B000000MUG": [
        {"instruction": "a mug.", "instruction_attributes": ["safe"], "instruction_options": ["blue", "xl"]},
        {"instruction": "nothing", "instruction_attributes": [], "instruction_options": []},
    ]
}


def write(folder: Path, products: list[Any] | None = None, human: bool = False) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "items_shuffle_1000.json").write_text(json.dumps(products or [LAMP, MUG, SHADE]))
    (folder / "items_ins_v2_1000.json").write_text(json.dumps(ASKED))
    if human:
        (folder / "items_human_ins.json").write_text(json.dumps(WORDED))
    return folder
