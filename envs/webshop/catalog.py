"""Generated products in WebShop's own file formats, for a machine without the official data.

    LINES (what there is to sell) ──seed──► products ──► instructions, and some as a person words them

Every text is made here. Products of a line are alike, so that a purchase has to be checked: they differ in
their features, options and prices.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

FORMAT = 1  # raised when the same seed would give other products
PRODUCTS = 400


@dataclass(frozen=True)
class Line:
    """A kind of product."""

    query: str
    category: str
    path: str
    nouns: tuple[str, ...]
    features: tuple[str, ...]
    options: tuple[str, ...]  # names in VALUES
    prices: tuple[float, float]  # dollars


VALUES = {
    "color": ("black", "white", "navy blue", "olive green", "burgundy", "grey", "rose gold", "teal"),
    "size": ("small", "medium", "large", "x-large", "xx-large"),
    "shoe size": ("6", "7", "8", "8.5", "9", "10 wide", "11"),
    "length": ("3ft", "6ft", "10ft"),
    "width": ("31 inch", "42 inch", "55 inch"),
    "scent": ("lavender", "coconut", "citrus mint", "unscented"),
    "volume": ("8 fl oz (pack of 1)", "16 fl oz (pack of 1)", "16 fl oz (pack of 2)"),
    "flavor name": ("vanilla", "hazelnut", "dark roast", "mocha", "sea salt/caramel"),
    "weight": ("12 ounce (pack of 1)", "12 ounce (pack of 3)", "2 pound"),
    "style": ("with case", "without case"),
}
LABELS = {"shoe size": "Size", "width": "Size", "volume": "Size", "weight": "Size"}  # what a shop calls them
LINES = (
    Line("women's sneakers", "fashion", "Clothing, Shoes & Jewelry › Women › Shoes › Fashion Sneakers",
         ("Running Sneaker", "Slip On Walking Sneaker", "Canvas Sneaker"),
         ("memory foam", "rubber sole", "arch support", "machine washable", "lace closure", "non slip"),
         ("color", "shoe size"), (18, 95)),
    Line("men's t-shirts", "fashion", "Clothing, Shoes & Jewelry › Men › Clothing › Shirts › T-Shirts",
         ("Crew Neck T-Shirt", "Pocket Tee Shirt", "Henley T-Shirt"),
         ("short sleeve", "machine wash", "slim fit", "loose fit", "classic fit", "tumble dry"),
         ("color", "size"), (9, 45)),
    Line("women's dresses", "fashion", "Clothing, Shoes & Jewelry › Women › Clothing › Dresses",
         ("Wrap Dress", "Maxi Dress", "Shirt Dress"),
         ("long sleeve", "elastic waist", "hand wash", "polyester spandex", "v neck", "button closure"),
         ("color", "size"), (15, 80)),
    Line("headphones", "electronics", "Electronics › Headphones › Over-Ear Headphones",
         ("Over Ear Headphones", "Wireless Headset", "Studio Headphones"),
         ("noise cancelling", "wireless bluetooth", "fast charging", "hands free", "stereo sound"),
         ("color", "style"), (19, 240)),
    Line("usb cables", "electronics", "Electronics › Accessories & Supplies › Cables › USB Cables",
         ("USB C Cable", "Braided Charging Cord", "Fast Charge Cable"),
         ("aluminum alloy", "high speed", "plug play", "heavy duty", "gold plated", "easy carry"),
         ("color", "length"), (5, 30)),
    Line("tripods", "electronics", "Electronics › Camera & Photo › Tripods & Monopods › Tripods",
         ("Travel Tripod", "Phone Tripod Stand", "Tabletop Tripod"),
         ("carbon fiber", "quick release", "non slip", "easy carry", "aluminum alloy", "long lasting"),
         ("color", "style"), (14, 130)),
    Line("console tables", "garden", "Home & Kitchen › Furniture › Living Room Furniture › Console Tables",
         ("Console Table", "Entryway Table", "Narrow Sofa Table"),
         ("solid wood", "easy assemble", "steel frame", "space saving", "water resistant", "engineered wood"),
         ("color", "width"), (60, 420)),
    Line("table lamps", "garden", "Home & Kitchen › Lighting & Ceiling Fans › Lamps & Shades › Table Lamps",
         ("Bedside Table Lamp", "Desk Lamp", "Ceramic Table Lamp"),
         ("energy efficient", "glass shade", "easy install", "living room", "usb port", "dimmable light"),
         ("color",), (14, 120)),
    Line("throw pillows", "garden", "Home & Kitchen › Bedding › Decorative Pillows › Throw Pillows",
         ("Velvet Throw Pillow", "Pillow Cover", "Lumbar Pillow"),
         ("machine washable", "super soft", "hidden zipper", "double sided", "living room", "dining room"),
         ("color",), (8, 40)),
    Line("shampoo", "beauty", "Beauty & Personal Care › Hair Care › Shampoo & Conditioner › Shampoos",
         ("Repair Shampoo", "Volumizing Shampoo", "Daily Shampoo"),
         ("sulfate free", "paraben free", "cruelty free", "tea tree", "argan oil", "dry hair"),
         ("scent", "volume"), (6, 40)),
    Line("body lotion", "beauty", "Beauty & Personal Care › Skin Care › Body › Moisturizers › Lotions",
         ("Body Lotion", "Hand and Body Cream", "Night Lotion"),
         ("coconut oil", "hyaluronic acid", "fragrance free", "sensitive skin", "dry skin", "cruelty free"),
         ("scent", "volume"), (7, 45)),
    Line("makeup brushes", "beauty", "Beauty & Personal Care › Tools & Accessories › Makeup Brushes",
         ("Makeup Brush Set", "Powder Brush", "Eyeshadow Brush Set"),
         ("synthetic hair", "easy clean", "eye shadow", "rose handle", "travel size", "high quality"),
         ("color", "style"), (6, 55)),
    Line("coffee", "grocery", "Grocery & Gourmet Food › Beverages › Coffee › Ground Coffee",
         ("Ground Coffee", "Medium Roast Coffee", "Espresso Blend Coffee"),
         ("fair trade", "gluten free", "low acid", "non gmo", "caffeine free", "individually wrapped"),
         ("flavor name", "weight"), (7, 48)),
    Line("snack bars", "grocery", "Grocery & Gourmet Food › Snack Foods › Bars › Nutrition Bars",
         ("Oat Snack Bar", "Protein Bar", "Nut Bar"),
         ("gluten free", "low sugar", "high protein", "plant based", "keto friendly", "soy free"),
         ("flavor name", "weight"), (6, 38)),
    Line("herbal tea", "grocery", "Grocery & Gourmet Food › Beverages › Tea › Herbal Tea",
         ("Herbal Tea Bags", "Loose Leaf Tea", "Iced Tea Blend"),
         ("caffeine free", "usda organic", "sugar free", "non gmo", "artificial colors", "kosher certified"),
         ("weight",), (5, 32)),
)  # fmt: skip
BRANDS = (
    "Norvale",
    "Quillon",
    "Tamsin & Co",
    "Brightfell",
    "Oakmere",
    "Zephyline",
    "Pellworth",
    "Marlowe Bay",
)
MANNERS = ("Premium", "Everyday", "Modern", "Compact", "Classic", "Deluxe", "Lightweight", "Original")
CLOSINGS = (
    "It comes in recycled packaging.",
    "Backed by a one year warranty.",
    "A favourite of our shop.",
    "",
)
ALPHABET = "0123456789ABCDEFGHJKLMNPQRSTUVWXYZ"


def generate(seed: int, count: int = PRODUCTS) -> tuple[list[Any], dict[str, Any], dict[str, Any]]:
    """Products, instructions by ASIN and human instructions by ASIN: the content of WebShop's three files."""
    rng = random.Random(f"webshop {FORMAT} {seed}")
    products: list[Any] = []
    asked: dict[str, Any] = {}
    worded: dict[str, Any] = {}
    while len(asked) < count:
        line = LINES[len(asked) % len(LINES)]
        asin = "G" + "".join(rng.choices(ALPHABET, k=9))
        if asin in asked:
            continue
        features = rng.sample(line.features, rng.randint(2, 4))
        products.append(_product(line, asin, features, rng))
        wishes = rng.sample(features, rng.randint(1, min(3, len(features))))
        asked[asin] = {
            "attributes": sorted(features),
            "instruction": f"Find me {', '.join(wishes)} {line.query}",
            "instruction_attributes": wishes,
        }
        worded[asin] = [_worded(line, products[-1], wishes, rng) for _ in range(2)]
    rng.shuffle(products)
    return products, asked, worded


def _product(line: Line, asin: str, features: list[str], rng: random.Random) -> dict[str, Any]:
    brand, noun = rng.choice(BRANDS), rng.choice(line.nouns)
    bullets = [f"{feature.capitalize()}: chosen with care by {brand}. " for feature in features]
    return {
        "asin": asin,
        "name": f"{brand} {rng.choice(MANNERS)} {noun}, {features[0].title()}, {features[1].title()}",
        "full_description": f"A {noun.lower()} for people who ask for {' and '.join(features[:2])}. "
        + rng.choice(CLOSINGS),
        "small_description": bullets if rng.random() < 0.95 else " ".join(bullets),
        "pricing": _pricing(line, rng),
        "images": [""],
        "customization_options": _options(line, rng) if rng.random() < 0.9 else "",
        "product_category": line.path,
        "category": line.category,
        "query": line.query,
        "average_rating": round(rng.uniform(3.2, 4.9), 1),
        "page": 1,
    }


def _pricing(line: Line, rng: random.Random) -> str:
    """One price, a range, or (seldom) none, which the shop takes for 100 dollars."""
    low = rng.uniform(*line.prices)
    kind = rng.random()
    return "" if kind < 0.02 else f"${low:.2f} - ${low * 1.3:.2f}" if kind < 0.2 else f"${low:.2f}"


def _options(line: Line, rng: random.Random) -> dict[str, Any]:
    return {
        LABELS.get(name, name.title()): [
            {"value": value, "is_selected": False, "image": None}
            for value in rng.sample(VALUES[name], rng.randint(2, min(5, len(VALUES[name]))))
        ]
        for name in line.options
    }


def _worded(line: Line, product: dict[str, Any], wishes: list[str], rng: random.Random) -> dict[str, Any]:
    options = product["customization_options"] or {}
    picked = [rng.choice(values)["value"].replace("/", " | ") for values in options.values()]
    text = f"i am looking for {line.query} that are {' and '.join(wishes)}"
    return {
        "asin": product["asin"],
        "instruction": text + (f", i would like {' and '.join(picked)}." if picked else "."),
        "instruction_attributes": wishes,
        "instruction_options": picked,
    }
