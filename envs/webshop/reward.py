"""WebShop's score of a purchase, with upstream's names for its components.

    score = r_type · (attributes met + options met + price kept) / (attributes + options + 1)

`r_att`, `r_option`, `r_price` are the shares that were met and `w_att`, `w_option`, `w_price` their weights.
`r_type` falls below 1 where the product is of another kind than the one wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from rapidfuzz import fuzz, utils

from hindsight.envs.webshop.data import Goal, Product

ALIKE = 85  # percent of similarity above which two phrases count as the same
_COLORS = (
    "alabaster apricot aqua ash asphalt azure banana beige black blue blush bordeaux bronze brown "
    "burgundy camel camo caramel champagne charcoal cheetah chestnut chocolate christmas coffee cognac "
    "copper coral cranberry cream crystal dark denim eggplant elephant espresso fuchsia gold granite "
    "grape graphite grass gray green grey heather indigo ivory ivy khaki lavender lemon leopard light "
    "lilac lime magenta maroon mauve merlot midnight mint mocha multicolor mushroom mustard natural navy "
    "nude olive orange peach pewter pink plum purple rainbow red rose royal rust sand sapphire seashell "
    "silver skull slate steel stone stonewash sunflower tan taupe teal tiger turquoise violet walnut "
    "wheat white wine yellow"
)
# An option that contains one of these is taken for it, for the first in this order.
COLORS = tuple(_COLORS.split())
LATIN = {code: None for code in range(128, 256)}  # characters that thefuzz leaves out


def alike(one: str, other: str) -> bool:
    """Whether two phrases are the same but for order, repetition and small differences (thefuzz's rule)."""
    left, right = (utils.default_process(text.translate(LATIN)) for text in (one, other))
    return round(fuzz.token_set_ratio(left, right)) > ALIKE


def shade(option: str | tuple[str, str]) -> str:
    """An option by its color where it has one.

    Of a pair (option, value) only a value that is a color's very name counts: upstream asks whether the name
    is an element of the pair, and compares the pair as Python writes it otherwise.
    """
    return next((color for color in COLORS if color in option), str(option))


def type_of(product: Product, target: Product, nouns: Callable[[str], tuple[str, ...]]) -> dict[str, Any]:
    """How far `product` is the kind of thing that `target` is."""
    query_match = product.query == target.query
    paths = [{part.strip() for part in item.path.split("›")} for item in (product, target)]
    category_match = len(paths[0] & paths[1]) >= 2
    wanted = nouns(target.name)
    title_score = len({*nouns(product.name)} & {*wanted}) / len(wanted) if wanted else 0.2
    r_type = 1.0 if query_match or category_match or title_score > 0.2 else 0.5
    if title_score < 0.1:
        r_type = 0.1
    if title_score == 0.0:
        r_type = 0.0
    return {
        "r_type": r_type,
        "query_match": query_match,
        "category_match": category_match,
        "title_score": title_score,
    }


def attributes_met(product: Product, wanted: Collection[str]) -> int:
    """Count the wanted attributes that the product has."""
    texts = [text.lower() for text in (product.name, " ".join(product.bullets), product.description)]
    return sum(
        any(alike(attribute, wish) for attribute in product.attributes) or any(wish in text for text in texts)
        for wish in wanted
    )


def options_met(chosen: Collection[str], wanted: Collection[str | tuple[str, str]]) -> int:
    """Count the wanted options that were chosen."""
    return sum(any(alike(shade(value), shade(wish)) for value in chosen) for wish in wanted)


def score(
    product: Product,
    chosen: Collection[str],
    goal: Goal,
    target: Product,
    nouns: Callable[[str], tuple[str, ...]],
) -> tuple[float, dict[str, Any]]:
    """The score in [0, 1] of buying `product` with the option values `chosen`, and its components.

    Args:
        target: the product that the goal was made from.
    """
    kind = type_of(product, target, nouns)
    attributes, options = len(goal.attributes), len(goal.options)
    parts = attributes + options + 1
    met = attributes_met(product, goal.attributes), options_met(chosen, goal.options)
    r_price = product.price <= goal.price_limit
    components = {**kind, "r_att": met[0] / attributes, "w_att": attributes / parts}
    if options:
        components |= {"r_option": met[1] / options, "w_option": options / parts}
    components |= {"r_price": r_price, "w_price": 1 / parts}
    return (sum(met) + r_price) / parts * kind["r_type"], components
