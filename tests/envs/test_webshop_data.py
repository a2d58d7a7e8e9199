"""WebShop's data files and goals: by hand, and against a plain second version of upstream's rules."""

import itertools
import json
import random
import re
from dataclasses import replace
from pathlib import Path

import pytest
from webshop_data_folder import ASKED, LAMP, MUG, OFFICIAL, SHADE, item, needs_official, options, write

from hindsight.envs.base import DataMissing
from hindsight.envs.panels import find_panels
from hindsight.envs.webshop import data as webshop_data
from hindsight.envs.webshop.catalog import LINES, generate
from hindsight.envs.webshop.data import FILES, NO_LIMIT, PRICE_SEED, SHUFFLE_SEED, load_shop
from hindsight.envs.webshop.env import WebShopFamily

CATEGORIES = {"beauty", "electronics", "fashion", "garden", "grocery"}


def plain_goals(folder: Path) -> list[tuple]:
    """Upstream's synthetic goals, step by step: all prices are drawn, then all limits, then one shuffle."""
    products = json.loads((folder / FILES[0][0]).read_text())
    asked = json.loads((folder / FILES[0][1]).read_text())
    random.seed(PRICE_SEED)
    prices = {}
    for product in products:
        numbers = [float(n.replace(",", "")) for n in re.findall(r"\$([\d.,]+)", product["pricing"])]
        prices[product["asin"]] = (
            100.0 if not numbers else numbers[0] if len(numbers) == 1 else random.uniform(*numbers[:2])
        )
    goals = []
    for product in products:
        wish = asked[product["asin"]]
        if "instruction" not in wish:
            continue
        steps = [n for n in range(10, 1000, 10) if n > prices[product["asin"]]][:4]
        limit, tail = 1000000, ""
        if len(steps) > 1:
            limit = sorted(random.sample(steps, 2))[1]
            tail = f", and price lower than {limit}.00 dollars"
        groups = sorted(
            (name.lower(), [v["value"].strip().replace("/", " | ").lower() for v in values])
            for name, values in (product["customization_options"] or {}).items()
            if values
        )
        for picked in itertools.product(*(values for _, values in groups)):
            pairs = tuple((group[0], value) for group, value in zip(groups, picked, strict=True))
            middle = " with " + ", and ".join(f"{n}: {v}" for n, v in pairs) if pairs else ""
            goals.append((product["asin"], wish["instruction"] + middle + tail, pairs, limit))
    random.seed(SHUFFLE_SEED)
    random.shuffle(goals)
    return goals


@pytest.fixture
def global_random():
    state = random.getstate()
    yield
    random.setstate(state)


def test_products_are_read_as_upstream_reads_them(tmp_path):
    lamp, mug, shade = load_shop(write(tmp_path)).products.values()
    assert lamp.options == {"color": ("navy blue", "228blue", "red | white"), "size": ("small", "large")}
    assert lamp.price_tag == "$19.99 to $1027.5" and 19.99 <= lamp.price <= 1027.5
    assert (mug.price, mug.price_tag, mug.query, mug.options) == (100.0, "$100.0", "mugs", {})
    assert (shade.price, shade.price_tag) == (985.0, "$985.0")
    assert lamp.bullets == ("Dimmable light ", "", "Made of steel") and shade.bullets == (
        "one text, not a list",
    )
    assert mug.attributes == ("dishwasher safe",)


def test_a_product_counts_once_and_needs_a_proper_number(tmp_path):
    again = item(LAMP["asin"], "Another")
    longer, nameless = item("B0123456789", "Too long"), item("nan", "Nameless")
    lone = item("B0LONELY", "No attributes known")
    data = load_shop(write(tmp_path, [LAMP, again, longer, nameless, lone]))
    assert [product.name for product in data.products.values()] == ["Acme Desk Lamp", "No attributes known"]
    assert data.products["B0LONELY"].attributes == ("DUMMY_ATTR",)


def test_goals_are_all_combinations_of_options_in_upstreams_order(tmp_path, global_random):
    data = load_shop(write(tmp_path))
    found = [(goal.asin, goal.instruction, goal.options, goal.price_limit) for goal in data.goals]
    assert found == plain_goals(tmp_path)
    assert len(found) == 3 * 2 + 1
    shade = next(goal for goal in data.goals if goal.asin == SHADE["asin"])
    assert (shade.price_limit, shade.instruction) == (NO_LIMIT, "Find me linen lamps")  # 990 is the only step
    assert shade.attributes == ("linen", "light")


def test_the_official_panel_is_the_first_500_goals_in_upstreams_order(tmp_path, global_random):
    """Of the 601, 600 ask for a lamp. The panel does not depend on what is drawn for training."""
    many = options(Color=[f"c{n}" for n in range(30)], Size=[f"s{n}" for n in range(20)])
    write(tmp_path, [LAMP | {"customization_options": many}, MUG, SHADE])
    settings = WebShopFamily.Settings(name="webshop", data=str(tmp_path), train_tasks=9, eval_tasks=3)
    family = WebShopFamily(settings, tmp_path / "cache")
    [panel] = find_panels(family, family.manifest(), ["webshop/test"])
    assert [task.data["goal"] for task in panel.tasks] == list(range(500))
    goals = plain_goals(tmp_path)
    assert len(goals) == 601
    assert [task.data["instruction"] for task in panel.tasks] == [told for _, told, *_ in goals[:500]]
    other = WebShopFamily(replace(settings, eval_tasks=8, seed=5), tmp_path / "cache")
    assert find_panels(other, other.manifest(), ["webshop/test"])[0].digest == panel.digest


def test_people_word_goals_of_their_own(tmp_path):
    with pytest.raises(DataMissing, match=r"items_human_ins\.json.*env\.goals"):
        load_shop(write(tmp_path), human=True)
    (goal,) = load_shop(write(tmp_path, human=True), human=True).goals
    assert goal.asin == MUG["asin"] and goal.options == ("blue", "xl") and goal.attributes == ("safe",)
    assert goal.price_limit in (120, 130, 140)
    assert goal.instruction == f"a mug, and price lower than {goal.price_limit:.2f} dollars"


def test_a_file_is_read_in_pieces(tmp_path, monkeypatch):
    whole = load_shop(write(tmp_path))
    monkeypatch.setattr(webshop_data, "CHUNK", 7)
    assert load_shop(tmp_path) == whole


def test_the_digest_is_of_the_content(tmp_path):
    one, other = write(tmp_path / "one"), write(tmp_path / "other", [MUG, LAMP, SHADE])
    assert load_shop(one).digest == load_shop(one).digest != load_shop(other).digest


@pytest.mark.parametrize(
    "content", ["", "{}", "[", '[{"asin": "B"}]', "[1]", '["x"]', '[{"asin": "B1"', "[nonsense]"]
)
def test_files_that_are_not_webshops_are_named(tmp_path, content):
    write(tmp_path)
    (tmp_path / FILES[0][0]).write_text(content)
    with pytest.raises(DataMissing, match=f"{tmp_path}.*set env.data"):
        load_shop(tmp_path)


def test_missing_files_are_named_and_the_small_pair_comes_first(tmp_path):
    with pytest.raises(DataMissing, match=r"items_shuffle_1000\.json and items_ins_v2_1000\.json"):
        load_shop(tmp_path)
    for small, full in zip(*FILES, strict=True):
        (write(tmp_path) / small).rename(tmp_path / full)
    assert len(load_shop(tmp_path).products) == 3
    write(tmp_path, [LAMP])
    assert len(load_shop(tmp_path).products) == 1


def test_generated_data_have_every_kind_of_product_and_quirk(tmp_path):
    products, asked, worded = generate(7)
    assert generate(7) == (products, asked, worded) != generate(8)
    assert len(products) == len(asked) == len({product["asin"] for product in products}) == 400
    assert {line.category for line in LINES} == CATEGORIES == {product["category"] for product in products}
    assert {type(product["small_description"]) for product in products} == {list, str}
    assert {product["pricing"].count("$") for product in products} == {0, 1, 2}
    assert "" in [product["customization_options"] for product in products]
    for product in products:
        text = " ".join(product["small_description"]).lower()
        wishes = asked[product["asin"]]["instruction_attributes"]
        assert all(wish in text or isinstance(product["small_description"], str) for wish in wishes)
    assert set(products[0]) == {*LAMP, "average_rating", "page"}
    assert all(set(wish) == set(ASKED[LAMP["asin"]]) for wish in asked.values())


@needs_official
def test_the_official_products_give_upstreams_6910_goals(global_random):
    data = load_shop(Path(OFFICIAL))
    assert (len(data.products), len(data.goals)) == (1000, 6910)
    assert {product.category for product in data.products.values()} == CATEGORIES
    found = [(goal.asin, goal.instruction, goal.options, goal.price_limit) for goal in data.goals]
    assert found == plain_goals(Path(OFFICIAL))
