"""The shop's pages by hand, and its score against a plain second version of upstream's rules."""

import random
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from webshop_data_folder import LAMP, OFFICIAL, SHADE, item, needs_official, options, write

from hindsight.envs.webshop.data import Goal, load_shop
from hindsight.envs.webshop.nouns import APPROXIMATE, Nouns
from hindsight.envs.webshop.pages import (
    FORM,
    Page,
    ShopPlace,
    clickables,
    follow_link,
    page_text,
    read_shop_action,
)
from hindsight.envs.webshop.reward import COLORS, alike, score, shade, type_of

WISH = "Find me a lamp"
FOUND = tuple(f"B{number:09}" for number in range(23))


@pytest.fixture(scope="module")
def products(tmp_path_factory):
    many = [item(asin, f"Lamp {number}") for number, asin in enumerate(FOUND)]
    return load_shop(write(tmp_path_factory.mktemp("shop"), [LAMP, SHADE, *many])).products


def lamp_page(*chosen):
    return ShopPlace("item", "lamp", 1, (LAMP["asin"],), LAMP["asin"], chosen)


def walk(products, place, *clicks):
    for clicked in clicks:
        assert clicked in clickables(place, products)
        place = follow_link(place, clicked, products)
    return place


def test_the_start_page():
    assert page_text(ShopPlace(), {}, WISH) == "WebShop [SEP] Instruction: [SEP] Find me a lamp [SEP] Search"
    assert clickables(ShopPlace(), {}) == ()


def test_pages_of_results(products):
    results = ShopPlace("results", "lamp", found=FOUND)
    head = "Instruction: [SEP] Find me a lamp [SEP] Back to Search [SEP] "
    first = " [SEP] ".join(f"{asin} [SEP] Lamp {n} [SEP] $10.0" for n, asin in enumerate(FOUND[:10]))
    assert (
        page_text(results, products, WISH) == f"{head}Page 1 (Total results: 23) [SEP] Next > [SEP] {first}"
    )
    assert clickables(results, products) == (
        "back to search",
        "next >",
        *(asin.lower() for asin in FOUND[:10]),
    )
    third = walk(products, results, "next >", "next >")
    assert clickables(third, products) == (
        *("back to search", "< prev", "next >"),
        *(asin.lower() for asin in FOUND[20:]),
    )
    fourth = walk(products, third, "next >")
    assert page_text(fourth, products, WISH) == f"{head}Page 4 (Total results: 23) [SEP] < Prev [SEP] Next >"
    assert walk(products, fourth, "< prev") == third
    assert walk(products, fourth, "back to search") == ShopPlace()


def test_the_item_page_shows_what_is_chosen(products):
    asin, tag = LAMP["asin"], products[LAMP["asin"]].price_tag
    place = walk(products, ShopPlace("results", "lamp", found=(asin,)), asin.lower())
    assert place == lamp_page()
    page = (
        "Instruction: [SEP] Find me a lamp [SEP] Back to Search [SEP] < Prev [SEP] color [SEP] navy blue "
        "[SEP] 228blue [SEP] red | white [SEP] size [SEP] small [SEP] large [SEP] Acme Desk Lamp [SEP] "
        f"Price: {tag} [SEP] Rating: N.A. [SEP] Description [SEP] Features [SEP] Reviews [SEP] Buy Now"
    )
    assert page_text(place, products, WISH) == page
    buttons = ("back to search", "< prev", "description", "features", "reviews", "buy now")
    assert clickables(place, products) == (*buttons, "navy blue", "228blue", "red | white", "small", "large")
    chosen = walk(products, place, "small", "navy blue", "large")
    assert chosen == lamp_page(("size", "large"), ("color", "navy blue"))
    assert page_text(chosen, products, WISH) == page + " [SEP] You have chosen size: large, color: navy blue"
    assert walk(products, chosen, "features", "< prev") == chosen
    assert walk(products, chosen, "< prev") == ShopPlace("results", "lamp", found=(asin,))


def test_detail_pages(products):
    head = "Instruction: [SEP] Find me a lamp [SEP] Back to Search [SEP] < Prev"
    seen = {page: walk(products, lamp_page(), page) for page in ("description", "features", "reviews")}
    assert page_text(seen["description"], products, WISH) == f"{head} [SEP] A lamp for reading. It dims."
    # An empty bullet leaves a space in upstream's page and so an empty part; an empty description nothing.
    assert (
        page_text(seen["features"], products, WISH)
        == f"{head} [SEP] Dimmable light [SEP]  [SEP] Made of steel"
    )
    assert page_text(seen["reviews"], products, WISH) == head
    shade_page = ShopPlace("description", "lamp", 1, (), SHADE["asin"])
    assert page_text(shade_page, products, WISH) == head
    assert {clickables(place, products) for place in seen.values()} == {("back to search", "< prev")}


def test_the_receipt(products):
    done = walk(products, lamp_page(("size", "small"), ("color", "men's <l>")), "buy now")
    assert clickables(done, products) == ()
    assert page_text(done, products, WISH, 2 / 3) == (
        "Thank you for shopping with us! [SEP] Your code: [SEP] None [SEP] (Paste it in your MTurk "
        "interface.) [SEP] Purchased [SEP] asin [SEP] B00000LAMP [SEP] options [SEP] "
        r'{"color": "men\u0027s \u003cl\u003e", "size": "small"} '
        "[SEP] attrs [SEP] None [SEP] category [SEP] None [SEP] query [SEP] None [SEP] product category "
        "[SEP] None [SEP] Target [SEP] asin [SEP] options [SEP] attrs [SEP] price upper [SEP] instuction "
        "text [SEP] category [SEP] product category [SEP] query [SEP] Goal [SEP] None [SEP] Reward [SEP] "
        "Your score (min 0.0, max 1.0) [SEP] 0.6666666666666666 [SEP] Reward Details [SEP] None"
    )


def test_actions_are_read_in_any_case():
    assert read_shop_action(" Click[Buy Now] ") == ("click", "buy now")
    assert read_shop_action("search[a [b] c]") == ("search", "a [b] c")
    for other in ("", "click", "click[]", "search[ ]", "press[x]", "click[a] b", FORM, "buy now"):
        assert read_shop_action(other) is None


def test_a_page_admits_listed_clicks_and_any_search():
    page = Page("…", ("click[buy now]", "click[men's [m]]"))
    for action in ("click[buy now]", "Click[Buy Now]", "click[men's [m]]", "search[red lamp]"):
        assert page.admits(action)
    for action in ("click[red lamp]", "buy now", FORM, "search[]", ""):
        assert not page.admits(action)
    assert Page("…", (FORM,)).admits("search[x]") and not Page("…", (FORM,)).admits("click[search]")
    assert not Page("Thank you").admits("search[x]")


def plain_ratio(one: str, other: str) -> float:
    """Percent of characters in the longest common subsequence."""
    row = [0] * (len(other) + 1)
    for a in one:
        last, row = row, [0]
        for number, b in enumerate(other):
            row.append(last[number] + 1 if a == b else max(last[number + 1], row[number]))
    return 200 * row[-1] / max(len(one) + len(other), 1)


def plain_alike(one: str, other: str) -> bool:
    """thefuzz's token_set_ratio(one, other) > 85."""

    def tokens(phrase):
        return set(re.sub(r"[\W_]", " ", re.sub(r"[\x80-\xff]", "", phrase)).lower().split())

    left, right = tokens(one), tokens(other)
    if not left or not right:
        return False
    shared = " ".join(sorted(left & right))
    sides = [
        " ".join(filter(None, [shared, " ".join(sorted(side))])) for side in (left - right, right - left)
    ]
    pairs = [(shared, sides[0]), (shared, sides[1]), (sides[0], sides[1])]
    return round(max(plain_ratio(*pair) for pair in pairs if all(pair))) > 85


def plain_score(product, chosen, goal, target, nouns):
    def color(option):
        for name in COLORS:
            if (name in option) if isinstance(option, str) else (name == option[0] or name == option[1]):
                return name
        return str(option)

    hits = 0
    texts = product.name.lower(), " ".join(product.bullets).lower(), product.description.lower()
    for wish in goal.attributes:
        known = [attribute for attribute in product.attributes if plain_alike(attribute, wish)]
        hits += 1 if known or [part for part in texts if wish in part] else 0
    for wish in goal.options:
        hits += 1 if [value for value in chosen if plain_alike(color(value), color(wish))] else 0
    hits += 1 if product.price <= goal.price_limit else 0
    share = hits / (len(goal.attributes) + len(goal.options) + 1)
    wanted, got = nouns(target.name), nouns(product.name)
    title = 0.2 if not wanted else len(set(wanted) & set(got)) / len(wanted)
    if title == 0:
        return 0.0
    if title < 0.1:
        return share * 0.1
    mine, theirs = ([part.strip() for part in one.path.split("›")] for one in (product, target))
    same_path = len([part for part in set(mine) if part in theirs]) > 1
    return share if product.query == target.query or same_path or title > 0.2 else share * 0.5


def check_scores(data, seed, count):
    rng, nouns, kinds = random.Random(seed), Nouns(), set()
    items = [*data.products.values()]
    for _ in range(count):
        goal = rng.choice(data.goals)
        target = data.products[goal.asin]
        product = rng.choice(
            [target, rng.choice(items), *[one for one in items if one.query == target.query]]
        )
        chosen = [rng.choice(values) for values in product.options.values() if rng.random() < 0.8]
        reward, parts = score(product, chosen, goal, target, nouns)
        assert reward == pytest.approx(plain_score(product, chosen, goal, target, nouns), abs=1e-12)
        weights = parts["w_att"] + parts.get("w_option", 0) + parts["w_price"]
        met = parts["r_att"] * parts["w_att"] + parts["r_price"] * parts["w_price"]
        met += parts.get("r_option", 0) * parts.get("w_option", 0)
        assert weights == pytest.approx(1) and reward == pytest.approx(parts["r_type"] * met)
        kinds.add(parts["r_type"])
    return kinds


def test_scores_are_upstreams_on_generated_products(generated):
    assert {0.0, 1.0} <= check_scores(generated, 0, 300)


@needs_official
def test_scores_are_upstreams_on_the_official_products():
    assert {0.0, 0.1, 1.0} <= check_scores(load_shop(Path(OFFICIAL)), 1, 400)


def test_a_score_by_hand(products):
    lamp = products[LAMP["asin"]]
    goal = Goal(lamp.asin, WISH, ("dimmable", "for reading", "cheap"), (("color", "navy blue"),), lamp.price)
    reward, parts = score(lamp, ["navy blue"], goal, lamp, str.split)
    assert reward == 4 / 5  # two of three attributes, the option, the price
    assert parts == {
        **{"r_type": 1.0, "query_match": True, "category_match": True, "title_score": 1.0},
        **{
            "r_att": 2 / 3,
            "w_att": 3 / 5,
            "r_option": 1.0,
            "w_option": 1 / 5,
            "r_price": True,
            "w_price": 1 / 5,
        },
    }
    assert "r_option" not in score(lamp, [], Goal(lamp.asin, WISH, ("x",), (), 0.0), lamp, str.split)[1]


@pytest.mark.parametrize(
    ("name", "query", "path", "r_type"),
    [
        ("a b c d e", "q", "x", 1.0),
        ("other things", "q", "x › y", 0.0),  # no noun in common: worth nothing, whatever else matches
        ("a 1 2", "other", "x", 0.5),  # one of five: neither above a fifth nor below a tenth
        ("a b 1", "other", "x", 1.0),  # two of five
        ("a 1 2", "other", "x › y", 1.0),
        ("a 1 2", "other", "z › y", 0.5),
        ("", "q", "x › y", 0.0),
    ],
)
def test_the_kind_of_product(tmp_path, name, query, path, r_type):
    fields = [
        item("B1", "a b c d e", query="q", product_category="x › y"),
        item("B2", name, query=query, product_category=path),
    ]
    target, product = load_shop(write(tmp_path, fields)).products.values()
    assert type_of(product, target, lambda text: tuple(text.split()))["r_type"] == r_type
    assert type_of(target, product, lambda text: ())["title_score"] == 0.2


def test_options_are_compared_by_color():
    assert len(COLORS) == len(set(COLORS)) == 102
    assert shade("dark navy blue") == "blue" and shade("xl") == "xl" and shade("rectangular") == "tan"
    assert shade(("color", "navy")) == "navy" and shade(("color", "navy blue")) == "('color', 'navy blue')"
    assert alike(shade("navy blue"), shade(("color", "navy blue")))
    assert not alike(shade("228blue"), shade(("color", "228blue")))  # upstream's rule cannot be met here
    assert alike("pack of 2 (red)", "red pack-of 2") and not alike("", "") and not alike("red", "bed")


@given(st.text(max_size=30), st.text(max_size=30))
def test_likeness_is_thefuzzs_on_any_text(one, other):
    found = alike(one, other)
    if (one + other).isascii():  # beyond, the two versions part words in slightly different places
        assert found == plain_alike(one, other)


def test_nouns_without_a_model():
    nouns = Nouns()
    nouns._model = None
    assert nouns("The Acme 3-Pack Men's Lamp for Home, Lamp (12 cm)") == (
        *("acme", "pack", "men's", "lamp", "home", "lamp"),
    )
    assert nouns("") == nouns("12 / 3") == ()
    assert Nouns().name == APPROXIMATE or Nouns().name.startswith("spacy en_core_web_sm")


def test_an_option_in_two_groups_is_the_last_ones(tmp_path):
    twice = item("B1", "Mug", customization_options=options(Inner=["red"], Outer=["blue", "red"]))
    products = load_shop(write(tmp_path, [twice])).products
    place = walk(products, ShopPlace("item", asin="B1"), "red")
    assert place.chosen == (("outer", "red"),)


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    from hindsight.envs.webshop.env import WebShopFamily

    settings = WebShopFamily.Settings(name="webshop")
    return WebShopFamily(settings, tmp_path_factory.mktemp("cache")).make()._shop.data
