"""`hindsight view` in a browser: headless Chromium clicks and types on pages of a toy run."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait
from toy_runs import write_run, write_sparse_run

from hindsight.cluster.report.export import STATIC, export
from hindsight.cluster.report.pages import Pages
from hindsight.cluster.report.run_folder import RunFolder
from hindsight.cluster.report.serve import application, listen

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
AXE = STATIC.parent / "viewer/node_modules/axe-core/axe.min.js"
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--window-size=1400,900",
)
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver (Debian: chromium, chromium-driver)"
)
PAGES = {  # addresses, and an element that is there when the page is complete
    "overview": ("0/overview", ".tiles"),
    "episodes": ("0/episodes", ".row"),
    "episode": ("0/episode/step-000002/1", ".turn .token"),
    "side by side": ("0/beside/step-000002:0/step-000002:1", ".column:last-child .share"),
    "timeline": ("0/timeline/2", "rect.span"),
}


class Page:
    """A browser's tab."""

    def __init__(self, driver: webdriver.Chrome, base: str) -> None:
        self.driver, self.base = driver, base

    def open(self, address: str, shows: str) -> None:
        """Load an address from scratch and wait for an element that only its page has."""
        self.driver.get("about:blank")
        self.driver.get(f"{self.base}#/{address}")
        self.one(shows)

    def one(self, selector: str) -> Any:
        """The first element that matches, as soon as there is one."""
        return self.until(lambda: self.driver.find_elements(By.CSS_SELECTOR, selector))[0]

    def all(self, selector: str) -> list[Any]:
        """Every element that matches now."""
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def until(self, found: Callable[[], Any]) -> Any:
        """What `found` returns, as soon as that is true."""
        return WebDriverWait(self.driver, 10, poll_frequency=0.02).until(lambda _: found())

    def press(self, *keys: str) -> None:
        """Press keys as a keyboard does: a closed dialog may still hold the focus and takes none by name."""
        ActionChains(self.driver).send_keys(*keys).perform()

    def at(self) -> str:
        """The address of the page after its base."""
        return str(self.driver.current_url.partition("#/")[2])

    def script(self, code: str, *arguments: Any) -> Any:
        """Run code in the page."""
        return self.driver.execute_script(code, *arguments)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, Pages]]:
    root = tmp_path_factory.mktemp("runs")
    folders = {"toy": write_run(root / "toy"), "sparse": write_sparse_run(root / "sparse")}
    return [(name, Pages(RunFolder(folder))) for name, folder in folders.items()]


@pytest.fixture(scope="module")
def address(runs: list[tuple[str, Pages]]) -> Iterator[str]:
    """A server of the toy runs, in a thread."""
    with listen(0) as listening:
        app = application(runs, {"version": "1", "follow": True})
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
        server.should_exit = True
        thread.join(timeout=10)


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield found
    found.quit()


@pytest.fixture
def page(driver: webdriver.Chrome, address: str) -> Iterator[Page]:
    """The tab; afterwards nothing may have been logged, and nobody else may have been asked."""
    driver.get("about:blank")  # Chromium's own first page loads parts of its own
    for log in ("browser", "performance"):
        driver.get_log(log)
    yield Page(driver, address)
    assert [entry["message"] for entry in driver.get_log("browser")] == []
    assert strangers(driver, address) == []


def strangers(driver: webdriver.Chrome, address: str) -> list[str]:
    """Addresses that the page asked for and that are not the server's."""
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    sent = [one["params"]["request"] for one in events if one["method"] == "Network.requestWillBeSent"]
    return [one["url"] for one in sent if not one["url"].startswith((address, "about:", "data:"))]


def test_clicks_reach_every_page(page: Page) -> None:
    page.open(*PAGES["overview"])
    assert "finished" in page.one(".lead").text and page.one("figure svg .evaluation")
    page.one("nav a:nth-child(2)").click()
    page.one(".list tbody tr.row:nth-child(2) .task a").click()
    page.one(".turn .token")
    page.one(".links a[href*='beside']").click()
    page.until(lambda: len(page.all(".column .share")) > 8)
    page.one(".column h2 a").click()
    page.one(".turn .token")
    page.one("nav a:nth-child(3)").click()
    assert len(page.until(lambda: page.all("rect.span"))) == 6
    assert "weight sync" in page.one(".timeline table").text


def test_keys_reach_every_page(page: Page) -> None:
    page.open(*PAGES["overview"])
    page.press("e")
    page.one(".row.chosen")
    page.press("j", "j", Keys.ENTER)
    page.one(".turn .token")
    assert page.at() == "0/episode/step-000003/2"
    page.press("j", Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert "turn 2, token 12 of 22" in page.until(lambda: page.one(".inspector").text)
    assert page.driver.switch_to.active_element.get_attribute("role") == "group"  # the turn's tokens
    page.press("k", Keys.END)
    page.until(lambda: "turn 1, token 22 of 22" in page.one(".inspector").text)
    page.one(".links a[href*='beside']")
    page.press("n")
    page.until(lambda: page.at() == "0/episode/step-000003/3")
    page.one(".links a[href*='beside']")
    page.press("s")
    page.one(".column.current")
    page.press("t")
    page.one("rect.span")
    page.press("?")
    assert page.one("dialog[open]").text.startswith("Keyboard")
    page.press(Keys.ESCAPE)
    page.until(lambda: not page.all("dialog[open]"))
    page.press("o")
    page.one(".tiles")


def test_episodes_are_filtered_and_sorted(page: Page) -> None:
    page.open("0/episodes?stage=all", ".row")
    page.until(lambda: "32 episodes" in page.one("[role=status]").text)
    page.press("/", *"held")
    page.until(lambda: "8 episodes" in page.one("[role=status]").text)
    assert "q=held" in page.at()
    page.open("0/episodes?stage=step-000001&sort=-reward", ".row")
    rewards = [row.text for row in page.all(".row td:nth-child(7)")]
    assert rewards == sorted(rewards, reverse=True) and len(set(rewards)) == 2


def test_text_is_never_markup(page: Page) -> None:
    """Hostile observations, notes and messages are shown as they are."""
    page.open(*PAGES["episode"])
    assert "<script>window.pwned" in page.one("#turn-1").text
    assert "<img src=x" in page.one("#turn-0 .note").text
    page.press("x")
    page.until(lambda: "<|im_start|>user" in page.one("#turn-1 .saw").text)
    assert page.script("return [window.pwned, document.images.length]") == [None, 0]
    page.open(*PAGES["overview"])
    assert "onerror" in page.one("[aria-labelledby=failures]").text
    assert page.script("return [window.pwned, document.images.length]") == [None, 0]


def test_tokens_are_colored_by_the_chosen_quantity(page: Page) -> None:
    page.open(*PAGES["episode"])
    choice = Select(page.one(".bar-top select"))
    names = [option.get_attribute("value") for option in choice.options]
    assert names == ["applied", "advantage", "delta", "weight", "share", "student", "teacher"]
    shades = {}
    for place, name in enumerate(names):
        choice.select_by_index(place)
        page.until(lambda name=name: page.one(".bar-top select").get_property("value") == name)
        shades[name] = [one.get_attribute("class") for one in page.all("#turn-0 .token")]
    assert all("none" in one for one in shades["weight"][:9]) and "none" not in shades["weight"][9]
    assert len({one.split()[1] for one in shades["advantage"]}) == 1  # a whole turn has one advantage
    assert len({one.split()[1] for one in shades["student"]}) > 2
    strongest = "return getComputedStyle(document.querySelector('.legend .u5')).backgroundColor"
    assert page.script(strongest) != "rgba(0, 0, 0, 0)"
    page.script("document.querySelectorAll('#turn-0 .token')[9].click()")
    shown = page.until(lambda: page.one(".inspector").text)
    assert '"take"' in shown and "share of the step's loss" in shown and "teacher finds it" in shown


def test_a_folder_of_which_files_are_gone_is_shown(page: Page) -> None:
    page.open("1/episode/step-000001/0", ".turn")
    assert "No values of tokens were recorded" in page.one(".bar-top").text
    assert "take mug 1" in page.one("#turn-0 .said").text
    page.open("1/timeline/1", ".timeline")
    page.until(lambda: "No timeline was recorded" in page.one("main").text)


def test_several_runs_are_drawn_on_the_same_axes(page: Page) -> None:
    page.open("0/overview", "[aria-labelledby=runs] figure")
    names = page.until(lambda: page.all("[aria-labelledby=runs] .legend-run"))
    assert [one.text for one in names[:-1]] == ["toy", "sparse"]
    color = "return getComputedStyle(document.querySelector(arguments[0])).stroke"
    first, second = (page.script(color, f"figure svg .run-{at} > .line") for at in (0, 1))
    assert first != second and first.startswith("rgb")
    assert len(page.all("[aria-labelledby=runs] figure .evaluation")) == 2  # not those before the warm start
    assert page.one("[aria-labelledby=runs] tr[aria-current]").text.startswith("toy")
    page.one("[aria-labelledby=runs] a[href='#/1/overview']").click()
    page.until(lambda: page.one("h1").text == "sparse")


def test_a_run_is_followed(page: Page, runs: list[tuple[str, Pages]]) -> None:
    folder = runs[0][1].run.path
    page.open(*PAGES["overview"])
    line = json.dumps({"step": 4, "kind": "train", "rollout/success": 1.0})
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(line + "\n")
    page.until(lambda: "step 4" in page.one(".lead").text)


def test_the_pages_have_no_serious_faults_for_people_who_need_aids(page: Page) -> None:
    if not AXE.is_file():
        pytest.skip("axe-core is not installed: make viewer")
    rules = AXE.read_text()
    for name, (place, shows) in PAGES.items():
        page.open(place, shows)
        page.driver.execute_cdp_cmd("Runtime.evaluate", {"expression": rules})
        for theme, only in (("light", {}), ("dark", {"runOnly": ["color-contrast"]})):
            page.script("document.documentElement.dataset.theme = arguments[0]", theme)
            found = page.driver.execute_async_script(
                "axe.run(arguments[0]).then((result) => arguments[1](result.violations))", only
            )
            serious = [
                (one["id"], [node["html"][:200] for node in one["nodes"][:3]])
                for one in found
                if one["impact"] in ("serious", "critical")
            ]
            assert serious == [], f"{name}, {theme}"


def test_an_export_opens_from_a_file(
    driver: webdriver.Chrome, runs: list[tuple[str, Pages]], tmp_path: Path
) -> None:
    export(runs, tmp_path / "out", {"version": "1", "follow": False})
    tab = Page(driver, (tmp_path / "out/index.html").as_uri())
    for log in ("browser", "performance"):
        driver.get_log(log)
    tab.open(*PAGES["episode"])
    tab.press("t")
    tab.one("rect.span")
    tab.open("1/episodes?stage=all", ".row")
    assert [entry["message"] for entry in driver.get_log("browser")] == []
    assert strangers(driver, (tmp_path / "out").as_uri()) == []
