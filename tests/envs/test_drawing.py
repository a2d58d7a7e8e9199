"""Drawings of recorded turns: the environments' real texts, any text, and drawings of users."""

import json
import re
import subprocess
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hindsight.configs.registry import ENVIRONMENTS
from hindsight.envs.drawing import KINDS, draw_turn
from hindsight.envs.tool_calls import Call, write_calls

NAMES = [*ENVIRONMENTS.builtin, "unheard_of", "gone.py", "gone:Env"]
WISH = "Find me rubber sole women's sneakers with color: navy blue, and price lower than 60.00 dollars"
HEAD = f"Instruction: [SEP] {WISH} [SEP] Back to Search"
PRODUCT = (
    f"{HEAD} [SEP] < Prev [SEP] color [SEP] grey [SEP] navy blue [SEP] Oakmere Sneaker, Non Slip [SEP] "
    "Price: $31.98 to $41.57 [SEP] Rating: N.A. [SEP] Description [SEP] Features [SEP] Reviews [SEP] Buy Now"
)
RECEIPT = (
    "Thank you for shopping with us! [SEP] Your code: [SEP] None [SEP] Purchased [SEP] asin [SEP] GLS34A20YS"
)


def text(words):
    return {"kind": "text", "text": words}


def room(place, *things):
    return {"kind": "room", "place": place, "things": list(things)}


def page(title, items, *buttons):
    return {"kind": "page", "title": title, "items": items, "buttons": list(buttons)}


@pytest.mark.parametrize(
    ("seen", "drawn"),
    [
        (
            "-= Welcome to TextWorld, ALFRED! =-\n\nYou are in the middle of a room. Looking quickly around "
            "you, you see a cabinet 1, a drawer 2, and an armchair 1.\n\n"
            "Your task is to: put some soapbottle on drawer.",
            [
                text("-= Welcome to TextWorld, ALFRED! =-"),
                room("middle of a room", "cabinet 1", "drawer 2", "armchair 1"),
                text("Your task is to: put some soapbottle on drawer."),
            ],
        ),
        ("You arrive at cabinet 7. The cabinet 7 is closed.", [room("cabinet 7 (closed)")]),
        (
            "You arrive at countertop 1. On the countertop 1, you see a apple 1, a mug 1, and a egg 1.",
            [room("countertop 1", "apple 1", "mug 1", "egg 1")],
        ),
        (
            "You open the drawer 5. The drawer 5 is open. In it, you see a spoon 2.",
            [text("You open the drawer 5."), room("drawer 5 (open)", "spoon 2")],
        ),
        (
            "You arrive at loc 5. On the desk 1, you see a mug 2.",
            [text("You arrive at loc 5."), room("desk 1", "mug 2")],
        ),
        ("The fridge 1 is open. In it, you see nothing.", [room("fridge 1 (open)")]),
        ("You are facing the cabinet 4. Next to it, you see nothing.", [room("next to cabinet 4")]),
        (
            "You are carrying: a soapbar 1.",
            [{"kind": "list", "title": "You are carrying", "items": ["soapbar 1"]}],
        ),
        (
            "You pick up the soapbar 1 from the drawer 3.",
            [text("You pick up the soapbar 1 from the drawer 3.")],
        ),
        ("Nothing happens.", [text("Nothing happens.")]),
    ],
)
def test_alfworld(seen, drawn):
    assert draw_turn("alfworld", seen, "", "") == drawn
    assert draw_turn("alfworld", "", "look", seen) == [text("look"), *drawn]


@pytest.mark.parametrize(
    ("seen", "drawn"),
    [
        (
            f"WebShop [SEP] Instruction: [SEP] {WISH} [SEP] Search",
            [text(WISH), page("WebShop", [], "Search")],
        ),
        (
            f"{HEAD} [SEP] Page 2 (Total results: 50) [SEP] < Prev [SEP] Next > [SEP] GLS34A20YS [SEP] "
            "Oakmere Sneaker [SEP] $31.98 to $41.57 [SEP] GBK45TD0E4 [SEP] Quillon, Non Slip [SEP] $30.94",
            [
                text(WISH),
                page(
                    "Page 2 (Total results: 50)",
                    [
                        {"id": "GLS34A20YS", "title": "Oakmere Sneaker", "price": "$31.98 to $41.57"},
                        {"id": "GBK45TD0E4", "title": "Quillon, Non Slip", "price": "$30.94"},
                    ],
                    *("Back to Search", "< Prev", "Next >"),
                ),
            ],
        ),
        (
            f"{PRODUCT} [SEP] You have chosen color: grey",
            [
                text(WISH),
                page(
                    "Oakmere Sneaker, Non Slip",
                    [],
                    *("Back to Search", "< Prev", "Description", "Features", "Reviews", "Buy Now"),
                ),
                text("Price: $31.98 to $41.57\nRating: N.A.\nYou have chosen color: grey"),
                {"kind": "list", "title": "Options", "items": ["color", "grey", "navy blue"]},
            ],
        ),
        (
            f"{HEAD} [SEP] < Prev [SEP] Soft. [SEP] Light.",
            [text(WISH), page("", [], "Back to Search", "< Prev"), text("Soft."), text("Light.")],
        ),
        (
            RECEIPT,
            [
                {
                    "kind": "list",
                    "title": "Thank you for shopping with us!",
                    "items": ["Your code:", "None", "Purchased", "asin", "GLS34A20YS"],
                }
            ],
        ),
        (f"{HEAD} [SEP] Page 1 (Total results: 0) [SEP] Next > [SEP] what is this", None),
    ],
)
def test_webshop(seen, drawn):
    assert draw_turn("webshop", seen, "", "") == (drawn or [text(seen)])
    complaint = 'Nothing happened: this page has no "a\nb" to click.'
    if drawn and seen != RECEIPT:
        assert draw_turn("webshop", f"{complaint}\n{seen}", "", "") == [text(complaint), *drawn]
    assert draw_turn("webshop", "", "click[grey]", complaint) == [text("click[grey]"), text(complaint)]


@pytest.mark.parametrize("name", ["taubench", "bfcl"])
def test_tool_calls(name):
    find = Call("find", {"path": ".", "name": "notes"})
    one = {"kind": "call", "name": "find", "arguments": {"path": ".", "name": "notes"}}
    assert draw_turn(name, "Where are they?", write_calls([find]), "a\nb") == [
        text("Where are they?"),
        one | {"result": "a\nb"},
    ]
    answer = f"I look.\n{write_calls([find, Call('ls')])}\nNow."
    two = [one, {"kind": "call", "name": "ls", "arguments": {}}]
    matched = [two[0] | {"result": "[]"}, two[1] | {"result": "[1]"}]
    assert draw_turn(name, "", answer, "[]\n[1]") == [text("I look.\nNow."), *matched]
    assert draw_turn(name, "", answer, "[]\n[1]\n[2]") == [text("I look.\nNow."), *two, text("[]\n[1]\n[2]")]
    assert draw_turn(name, "", answer, "") == [text("I look.\nNow."), *two]
    assert draw_turn(name, "", "Hello.", "Hi.") == [text("Hello."), text("Hi.")]
    assert draw_turn(name, "", "<tool_call>{", "No.") == [text("<tool_call>{"), text("No.")]


def test_bfcl_diff():
    action = write_calls([Call("diff", {"file_name1": "a", "file_name2": "b"})])
    call = {"kind": "call", "name": "diff", "arguments": {"file_name1": "a", "file_name2": "b"}}
    diff = {"kind": "diff", "lines": ["- one", "+ two"]}
    assert draw_turn("bfcl", "", action, json.dumps({"diff_lines": "- one\n+ two"})) == [call, diff]
    for result in ('{"error": "no"}', "[" * 100_000, "?", '{"diff_lines": 1}'):
        assert draw_turn("bfcl", "", action, result) == [call | {"result": result}]


def test_appworld():
    code = {"kind": "code", "language": "python", "text": "print(1)", "output": "1\n"}
    assert draw_turn("appworld", "Count.", "print(1)", "1\n") == [text("Count."), code]
    assert draw_turn("appworld", "", "", "1\n") == [text("1\n")]


PIECES = st.sampled_from(
    [
        *(
            "You arrive at ",
            "cabinet 1. ",
            "On the cabinet 1, you see ",
            "a mug 1, ",
            "nothing.",
            "\n\n",
            "\n",
        ),
        *(
            "You are carrying: ",
            "The drawer 1 is closed.",
            "Instruction: [SEP] ",
            " [SEP] ",
            "Back to Search",
        ),
        *("Page 1 (Total results: 3)", "GLS34A20YS", "< Prev", "Buy Now", "WebShop [SEP] ", RECEIPT, PRODUCT),
        *(
            "<tool_call>",
            "</tool_call>",
            '{"name": "diff", "arguments": {}}',
            '{"diff_lines": "- a"}',
            "\ud800",
        ),
    ]
)
TEXTS = st.text() | st.lists(PIECES | st.text(max_size=5)).map("".join)


def words(value):
    """All that is drawn, without white space."""
    if isinstance(value, dict):
        return set().union(*map(words, value.values()))
    if isinstance(value, list):
        return set().union(*map(words, value), set())
    return set(re.findall(r"[a-zA-Z0-9]+", value))


# What a drawing shows by its form.
FORM = words("You arrive at open the The On see a an and Instruction SEP is In it you inside")


@pytest.mark.parametrize("name", NAMES)
@given(observation=TEXTS, action=TEXTS, feedback=TEXTS)
@settings(max_examples=60)
def test_any_text_is_drawn_and_none_is_lost(name, observation, action, feedback):
    drawn = draw_turn(name, observation, action, feedback)
    json.dumps(drawn, allow_nan=False)
    assert all(block["kind"] in KINDS for block in drawn)
    assert words([observation, feedback]) - words(drawn) <= FORM


@pytest.mark.parametrize("name", ENVIRONMENTS.builtin)
def test_time_is_linear_in_the_text(name):
    pieces = (
        "You arrive at a",
        "On the a, you see a",
        " [SEP] ",
        "\n",
        "<tool_call>",
        "You open the a. ",
        "a, ",
    )
    texts = [piece * (1_000_000 // len(piece)) for piece in pieces]
    started = time.process_time()
    for long in [*texts, HEAD + texts[2], write_calls([Call("a")]) * 10_000]:
        draw_turn(name, long, long, long)
    assert time.process_time() - started < 30


def test_drawings_need_no_environment():
    code = (
        "import sys; from hindsight.envs.drawing import draw_turn\n"
        f"for name in {list(ENVIRONMENTS.builtin)}: draw_turn(name, 'a', 'b', 'c')\n"
        "heavy = {'textworld', 'alfworld', 'tau2', 'bfcl_eval', 'Stemmer', 'torch', 'ray'}\n"
        "heavy &= set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_users_drawing_is_found_beside_the_environment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "maze_7.py").write_text("raise SystemExit('the environment is imported')")
    (tmp_path / "maze_7_drawing.py").write_text(
        "def blocks(observation, action, feedback):\n"
        "    return [{'kind': 'list', 'title': action, 'items': [observation, feedback]}]\n"
    )
    drawn = [{"kind": "list", "title": "go", "items": ["wall", "door"]}]
    for name in ("maze_7.py", str(tmp_path / "maze_7.py:Maze"), "maze_7:Maze"):
        assert draw_turn(name, "wall", "go", "door") == drawn


@pytest.mark.parametrize(
    ("number", "source", "said"),
    [
        (1, "def blocks(observation, action, feedback): return 1 / 0", "failed: ZeroDivisionError"),
        (2, "def blocks(observation, action, feedback): return 'x'", "expected a list of blocks, got str"),
        (
            3,
            "def blocks(observation, action, feedback): return [{'kind': 'film'}]",
            "a block is a dict whose",
        ),
        (4, "def blocks(*texts): return [{'kind': 'text', 'text': {1}}]", "failed: TypeError"),
        (5, "import gone_for_good", "cannot import broken_5_drawing: ModuleNotFoundError"),
        (6, "", "has no function blocks"),
    ],
)
def test_a_users_drawing_that_fails_is_reported_and_loses_no_text(
    tmp_path, monkeypatch, number, source, said
):
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / f"broken_{number}_drawing.py").write_text(source)
    first, *rest = draw_turn(str(tmp_path / f"broken_{number}.py"), "a", "b", "c")
    assert said in first["text"]
    assert rest == [text("a"), text("b"), text("c")]
