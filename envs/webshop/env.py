"""WebShop: buy what an instruction asks for, in a shop of text pages.

    WebShopFamily ──manifest──► goals 0 … 499 for evaluation, the others for training
          │ ───────preload────► Shop: products, search index, nouns; loaded once, shared by forked processes
          └────────make───────► WebShopEnv: one customer, page by page

Upstream cannot be installed (its search needs Java, its pages a web server of another decade), so the shop is
our own. Data files, goals, page texts, ranking and reward equal upstream's, which tests verify. Upstream's
hidden search commands (<r>, <a>, <c>, <q>) are ordinary words here.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hindsight.configs.schema import Env
from hindsight.configs.setting import setting
from hindsight.envs.base import DataMissing, Demonstration, DemoStep, EnvError, EnvFamily, StepResult, TextEnv
from hindsight.envs.lucene import Index
from hindsight.envs.runtime.files import atomic_dir
from hindsight.envs.tasks import Manifest, TaskSpec
from hindsight.envs.webshop.catalog import FORMAT, PRODUCTS, generate
from hindsight.envs.webshop.data import FILES, HUMAN, TEST_GOALS, Data, Goal, Product, load_shop
from hindsight.envs.webshop.expert import Shopper
from hindsight.envs.webshop.nouns import Nouns
from hindsight.envs.webshop.pages import (
    BUY,
    FORM,
    NEXT,
    SHOWN,
    Page,
    ShopPlace,
    clickables,
    follow_link,
    page_text,
    read_shop_action,
)
from hindsight.envs.webshop.reward import alike, score, shade

KINDS = ("beauty", "electronics", "fashion", "garden", "grocery")
RULES = (
    "You are a customer of a web shop. Find and buy the product that the instruction asks for: of the right "
    "kind, with the attributes and options named, at a price that is allowed. Every page is a list of texts "
    "separated by [SEP]. You act in one of two ways: search[words] looks for products, and click[text] "
    "selects an item of the page: a product's number, an option, a button. Choose the options before you "
    "click[buy now]: the purchase ends the task and is scored."
)
UNREADABLE = "Nothing happened: an action is search[words] or click[text of something on this page]."


class Shop:
    """Data that all instances read and none writes."""

    def __init__(self, data: Data) -> None:
        self.data = data
        self.nouns = Nouns()
        self._index = Index((asin, document(product)) for asin, product in data.products.items())

    def search(self, words: str) -> tuple[str, ...]:
        """The ASINs that match, best first."""
        return tuple(self._index.search(words))


class WebShopEnv(TextEnv):
    """Episodes of one customer in the shop."""

    def __init__(self, shop: Shop, max_turns: int) -> None:
        super().__init__(max_turns)
        self._shop = shop
        self._products = shop.data.products
        self._place = ShopPlace()
        self._goal: Goal

    def _reset(self, task: TaskSpec) -> Page:
        self._goal = self._goal_of(task)
        self._place = ShopPlace()
        return self._observe(rules=RULES)

    def _step(self, action: str) -> StepResult:
        complaint = self._move(action)
        if self._place.page == "done":
            return self._buy(self._goal)
        page = self._observe(complaint)
        return StepResult(page, complaint or page.text, 0.0, False, False, False)

    def reference(self, task: TaskSpec) -> list[str] | None:
        """Search for the goal's product by its name, open it, choose the options, buy it.

        None if searching for its name does not find it.
        """
        goal = self._goal_of(task)
        product = self._products[goal.asin]
        found = self._shop.search(product.name)
        if goal.asin not in found:
            return None
        values = [*itertools.chain(*product.options.values())]
        wanted = [
            [wish[1]] if isinstance(wish, tuple) else [v for v in values if alike(shade(v), shade(wish))][:1]
            for wish in goal.options
        ]
        turns = [NEXT] * (found.index(goal.asin) // SHOWN)
        clicks = [*turns, goal.asin.lower(), *dict.fromkeys(itertools.chain(*wanted)), BUY]
        return [f"search[{product.name}]", *(f"click[{clicked}]" for clicked in clicks)]

    def demonstrate(self, task: TaskSpec, seed: int, noise: float) -> Demonstration:
        """Noise may search for a word of the instruction, and never buys: there is no recovery from that."""
        rng = random.Random(f"{seed} {task.id}")
        first = page = self.reset(task)
        assert isinstance(page, Page)
        words = self._goal.instruction.split()
        shopper = Shopper(self._goal.instruction, self.max_turns)
        steps: list[DemoStep] = []
        offered: dict[str, None] = {}  # so far: many are not possible now, and nothing happens
        while self.playing:
            offered |= dict.fromkeys(page.actions)
            wanted = action = shopper.act(page)
            if rng.random() < noise:
                action = rng.choice([act for act in offered if act != f"click[{BUY}]"])
                action = f"search[{rng.choice(words)}]" if action == FORM else action
            result = self.step(action)
            steps.append(DemoStep(page, action, wanted, result))
            assert isinstance(result.observation, Page)
            page = result.observation
        return Demonstration(task, first, tuple(steps), steps[-1].result.success)

    def _goal_of(self, task: TaskSpec) -> Goal:
        """
        Raises:
            EnvError: the task is of another catalog than this shop's, or is scored with other nouns.
        """
        mine = {"catalog": self._shop.data.digest, "nouns": self._shop.nouns.name}
        theirs = {name: task.data.get(name) for name in mine}
        if theirs != mine:
            raise EnvError(
                f"task {task.id} is of a shop with {theirs}, this one has {mine}: make both the same"
            )
        return self._shop.data.goals[task.data["goal"]]

    def _move(self, action: str) -> str:
        """Follow the action; return what is wrong with it, or ""."""
        match read_shop_action(action):
            case ("search", words):
                self._place = ShopPlace("results", words, found=self._shop.search(words))
            case ("click", words) if words in clickables(self._place, self._products):
                self._place = follow_link(self._place, words, self._products)
            case ("click", words):
                return f'Nothing happened: this page has no "{words[:80]}" to click.'
            case _:
                return UNREADABLE
        return ""

    def _observe(self, complaint: str = "", rules: str = "") -> Page:
        page = page_text(self._place, self._products, self._goal.instruction)
        clicks = tuple(f"click[{words}]" for words in clickables(self._place, self._products))
        shown = f"{complaint}\n{page}" if complaint else page
        return Page(shown, clicks or (FORM,), state_key=page, rules=rules)

    def _buy(self, goal: Goal) -> StepResult:
        place = self._place
        product = self._products[place.asin]
        chosen = dict(place.chosen)
        reward, components = score(
            product, chosen.values(), goal, self._products[goal.asin], self._shop.nouns
        )
        info: dict[str, Any] = {
            "components": components,
            "nouns": self._shop.nouns.name,
            "bought": {"asin": product.asin, "options": chosen, "price": product.price},
            "wanted": {
                "asin": goal.asin,
                "attributes": list(goal.attributes),
                "options": [list(wish) if isinstance(wish, tuple) else wish for wish in goal.options],
                "price_limit": goal.price_limit,
            },
        }
        page = page_text(place, self._products, goal.instruction, reward)
        return StepResult(Page(page, state_key=page), page, reward, True, False, reward == 1.0, info)


class WebShopFamily(EnvFamily):
    """WebShop's goals, of the official data where configured, else of products generated into the cache."""

    name = "webshop"
    action_format = "tags"
    turn_limit = 15
    KINDS = KINDS

    @dataclass(frozen=True)
    class Settings(Env):
        """The section `env` for WebShop."""

        goals: Literal["synthetic", "human"] = setting("synthetic", "goals made from products, or by people")

    def __init__(self, config: Settings, cache: Path) -> None:
        """
        Raises:
            ValueError: the configuration names a category that WebShop lacks.
        """
        super().__init__(config, cache)
        self._config = config
        self._cache = cache / "webshop"
        # Resolved here, by the driver: shards work in other folders.
        self._official = Path(config.data).expanduser().resolve() if config.data else None
        self._data: Data | None = None
        self._shop: Shop | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_data": None, "_shop": None}  # whoever unpickles it loads its own

    def manifest(self) -> Manifest:
        data = self._load()
        return Manifest(
            train=self._draw(data, "train", range(TEST_GOALS, len(data.goals)), self._config.train_tasks),
            evaluation=self._draw(data, "test", range(TEST_GOALS), self._config.eval_tasks),
        )

    def panels(self) -> dict[str, Callable[[], tuple[TaskSpec, ...]]]:
        """`webshop/test`: the first 500 goals in their order; `test` of generated data."""
        name = f"{self.name}/test" if self._official else "test"
        return {**super().panels(), name: self._test}

    def preload(self) -> None:
        shop = self._open()
        shop.nouns.learn(product.name for product in shop.data.products.values())

    def make(self) -> WebShopEnv:
        return WebShopEnv(self._open(), self._config.max_turns)

    def _load(self) -> Data:
        if self._data is None:
            self._data = load_shop(self._official or self._generated(), human=self._config.goals == "human")
        return self._data

    def _open(self) -> Shop:
        if self._shop is None:
            self._shop = Shop(self._load())
        return self._shop

    def _draw(self, data: Data, split: str, numbers: Iterable[int], count: int) -> tuple[TaskSpec, ...]:
        """Up to `count` goals, drawn by the seed."""
        categories = [product.category for product in (data.products[goal.asin] for goal in data.goals)]
        chosen = [
            number for number in numbers if number < len(categories) and categories[number] in self.kinds
        ]
        if not chosen:
            raise DataMissing(
                f"of {len(data.goals)} goals none is for {split} and of {', '.join(self.kinds)}: "
                "take more products or other env.kinds"
            )
        random.Random(f"{self._config.seed} {split}").shuffle(chosen)
        return self._tasks(data, split, chosen[:count])

    def _test(self) -> tuple[TaskSpec, ...]:
        data = self._load()
        return self._tasks(data, "test", range(min(TEST_GOALS, len(data.goals))))

    def _tasks(self, data: Data, split: str, numbers: Iterable[int]) -> tuple[TaskSpec, ...]:
        shop = {"catalog": data.digest, "nouns": Nouns().name}
        return tuple(
            TaskSpec(
                f"{split}/{number}",
                self.name,
                data.products[data.goals[number].asin].category,
                split,
                {"goal": number, "instruction": data.goals[number].instruction, **shop},
            )
            for number in numbers
        )

    def _generated(self) -> Path:
        """The folder of generated data, made by whoever asks first."""
        recipe = json.dumps([FORMAT, self._config.seed, PRODUCTS])
        folder = self._cache / hashlib.sha256(recipe.encode()).hexdigest()[:12]

        def make(draft: Path) -> None:
            for name, content in zip((*FILES[0], HUMAN), generate(self._config.seed), strict=True):
                (draft / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")

        return atomic_dir(folder, make)


def document(product: Product) -> str:
    """The searchable text of a product."""
    options = ", and ".join(f"{name}: {', '.join(values)}" for name, values in product.options.items())
    return " ".join([product.name, product.description, *product.bullets[:1], options]).lower()
