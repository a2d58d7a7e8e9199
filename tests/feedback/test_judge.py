"""The judge's client against a real server: retries, timeouts, kept answers, budget, bounds."""

from __future__ import annotations

import asyncio
import gzip
import json
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from feedback_toys import WHY, ask, worded

import hindsight.feedback.judge_client
from hindsight.configs.schema import Judge
from hindsight.feedback.judge_client import (
    RETRIES,
    Answer,
    JudgeBudgetSpent,
    JudgeClient,
    JudgeEndpoint,
    JudgeError,
    open_judge,
)
from hindsight.feedback.reading import Question

KEY = "sk-very-secret"
SCHEMA = {"type": "object", "properties": {"turn": {"type": "integer"}}}


class Server:
    """Answers each request with the next of `script`, the last one again and again: (status, body) or a
    function of the handler. It notes every request."""

    def __init__(self, *script):
        self.script = list(script)
        self.requests, self.keys = [], []
        self.busy = self.busiest = 0
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                outer.answer(self)

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"

    def answer(self, handler):
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        with self.lock:
            self.requests.append((handler.path, body))
            self.keys.append(handler.headers["Authorization"])
            self.busy += 1
            self.busiest = max(self.busiest, self.busy)
            step = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        try:
            if callable(step):
                step = step(handler)
            if step is not None:
                send(handler, *step)
        finally:
            with self.lock:
                self.busy -= 1


def send(handler, status, body, kind="application/json"):
    data = (body if isinstance(body, str) else json.dumps(body)).encode()
    with suppress(BrokenPipeError, ConnectionResetError):  # the client has given up
        handler.send_response(status)
        handler.send_header("Content-Type", kind)
        handler.send_header("Content-Length", str(len(data)))
        handler.send_header("retry-after-ms", "1")
        handler.end_headers()
        handler.wfile.write(data)


def said(text):
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "finish_reason": "stop", "message": message}
    return 200, {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}


@pytest.fixture
def once(monkeypatch):
    """No attempt after the first one."""
    monkeypatch.setattr(hindsight.feedback.judge_client, "RETRIES", 0)


@pytest.fixture
def serve(monkeypatch):
    monkeypatch.setenv("TEST_JUDGE_KEY", KEY)
    servers = []

    def start(*script):
        servers.append(Server(*script))
        return servers[-1]

    yield start
    for server in servers:
        server.http.shutdown()
        server.http.server_close()


def settings(server, **changes):
    chosen = {"source": "endpoint", "url": server.url, "model": "m", "api_key_env": "TEST_JUDGE_KEY"}
    return Judge(**(chosen | {"timeout": 5.0, "max_tokens": 64} | changes))


def test_the_endpoint_is_asked_as_configured(serve):
    server = serve(said("It failed."))
    assert ask(JudgeEndpoint(settings(server, top_p=0.9)), "Why?", schema=SCHEMA) == ["It failed."]
    [(path, body)] = server.requests
    assert path == "/v1/chat/completions" and server.keys == [f"Bearer {KEY}"]
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True}}
    assert body == {
        "model": "m",
        "messages": [{"role": "user", "content": "Why?"}],
        "max_tokens": 64,
        "temperature": 0.0,
        "top_p": 0.9,
        "response_format": form,
    }
    assert ask(JudgeEndpoint(settings(server)), "Why?") == ["It failed."]
    assert "response_format" not in server.requests[1][1]
    ask(JudgeEndpoint(settings(server, characters=300)), Question(lambda characters: "x" * characters))
    assert server.requests[2][1]["messages"][0]["content"] == "x" * 300


@pytest.mark.parametrize("status", [408, 409, 429, 500, 503])
def test_what_may_pass_is_tried_again(serve, status):
    server = serve((status, {"error": {"message": "busy"}}), (status, "busy", "text/html"), said("ok"))
    assert ask(JudgeEndpoint(settings(server)), "Why?") == ["ok"]
    assert len(server.requests) == 3


def test_it_gives_up_after_its_retries(serve):
    server = serve((500, {"error": {"message": "down for good"}}))
    [error] = ask(JudgeEndpoint(settings(server)), "Why?")
    assert isinstance(error, JudgeError) and "down for good" in str(error)
    assert len(server.requests) == 1 + RETRIES == 3


@pytest.mark.parametrize("status", [400, 401, 404, 422])
def test_what_will_not_pass_is_not_tried_again_and_the_key_stays_hidden(serve, status):
    server = serve((status, {"error": {"message": f"no good: {'x' * 435} {KEY}"}}))
    [error] = ask(JudgeEndpoint(settings(server)), "Why?")
    assert "no good" in str(error) and KEY[:8] not in str(error) and len(server.requests) == 1


@pytest.mark.parametrize(
    "answer",
    [
        (200, "<html>hello</html>", "text/html"),
        (200, "{not json"),
        (200, {}),
        (200, []),
        (200, {"choices": None}),
        (200, {"choices": []}),
        (200, {"choices": [{"message": None}]}),
        (200, {"choices": ["text"]}),
        (200, {"choices": [{"message": {"content": ["a", "b"]}}]}),
        said(None),
    ],
    ids=str,
)
def test_answers_that_are_none_are_a_judges_failure(serve, once, answer):
    [error] = ask(JudgeEndpoint(settings(serve(answer))), "Why?")
    assert isinstance(error, JudgeError)


def test_a_slow_endpoint_is_not_waited_for(serve, once):
    server = serve(lambda handler: time.sleep(1.0))
    started = time.monotonic()
    [error] = ask(JudgeEndpoint(settings(server, timeout=0.2)), "Why?")
    assert isinstance(error, JudgeError) and time.monotonic() - started < 0.9


def test_an_endpoint_that_drips_is_not_waited_for(serve, once, monkeypatch):
    monkeypatch.setattr(hindsight.feedback.judge_client, "LONGEST_PAUSE", 0.3)

    def drip(handler):
        handler.send_response(200)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        with suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(60):
                handler.wfile.write(b" ")
                time.sleep(0.05)

    started = time.monotonic()
    [error] = ask(JudgeEndpoint(settings(serve(drip), timeout=0.3)), "Why?")
    assert "did not answer within 0.6 s" in str(error) and time.monotonic() - started < 2.5


def flood(status, sent, encoding=None):
    """Send an answer without end; `sent` counts its bytes."""

    def answer(handler):
        part = b"x" * 65536 if encoding is None else gzip.compress(b"x" * (8 << 20))
        handler.send_response(status)
        handler.send_header("Content-Type", "application/json")
        if encoding:
            handler.send_header("Content-Encoding", encoding)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        with suppress(BrokenPipeError, ConnectionResetError):
            while sum(sent) < 256 << 20:
                handler.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
                sent.append(len(part))

    return answer


@pytest.mark.parametrize(("status", "encoding"), [(200, None), (500, None), (200, "gzip")])
def test_an_answer_without_end_is_not_read_to_its_end(serve, status, encoding):
    sent: list[int] = []
    server = serve(flood(status, sent, encoding))
    [error] = ask(JudgeEndpoint(settings(server, timeout=20.0)), "Why?")
    assert isinstance(error, JudgeError) and "exceeds 1024 KiB" in str(error)
    assert sum(sent) < 64 << 20 and len(server.requests) == 1


def test_an_endpoint_that_is_not_there(serve, once):
    server = serve(said("ok"))
    gone = settings(server, url="http://127.0.0.1:9/v1")
    [error] = ask(JudgeEndpoint(gone), "Why?")
    assert isinstance(error, JudgeError) and "127.0.0.1:9" in str(error)


def test_a_missing_key_is_named(serve, monkeypatch):
    monkeypatch.delenv("TEST_JUDGE_KEY")
    with pytest.raises(JudgeError, match="TEST_JUDGE_KEY"):
        JudgeEndpoint(settings(serve(said("ok"))))


def test_answers_are_kept_and_never_paid_twice(serve, tmp_path):
    server = serve(said("first"), said("second"), said("third"))
    chosen = settings(server)
    client = open_judge(chosen, tmp_path / "judge", None, [])
    assert ask(client, "a") == ["first"]
    again = open_judge(chosen, tmp_path / "judge", None, [])  # a resumed run
    assert again.asked == 1
    assert ask(again, "a", "b") == ["first", "second"]
    other = open_judge(settings(server, model="other"), tmp_path / "judge", None, [])
    assert ask(other, "a") == ["third"]
    files = list((tmp_path / "judge").iterdir())
    assert len(files) == 3 and all(KEY not in file.read_text() for file in files)
    kept = [json.loads(file.read_text()) for file in files]
    assert {(one["question"], one["answer"]) for one in kept} == {
        ("a", "first"),
        ("b", "second"),
        ("a", "third"),
    }


def test_failures_are_not_kept(serve, tmp_path):
    server = serve((400, {"error": {"message": "no"}}), said("yes"))
    for expected in (JudgeError, str):
        [answer] = ask(JudgeClient(JudgeEndpoint(settings(server)), settings(server), tmp_path), "a")
        assert isinstance(answer, expected)


def test_half_characters_in_an_answer_can_be_kept(serve, tmp_path):
    server = serve((200, json.dumps(said("\ud800 half")[1])))
    [answer] = ask(JudgeClient(JudgeEndpoint(settings(server)), settings(server), tmp_path), "a")
    again = ask(JudgeClient(JudgeEndpoint(settings(server)), settings(server), tmp_path), "a")
    assert again == [answer] and len(server.requests) == 1


def test_the_budget_holds_for_the_whole_run(serve, tmp_path):
    server = serve(said("ok"))
    chosen = settings(server, budget=3, concurrency=2)
    answers = ask(JudgeClient(JudgeEndpoint(chosen), chosen, tmp_path), *"abcde")
    assert [answer == "ok" for answer in answers].count(True) == 3 == len(server.requests)
    spent = [answer for answer in answers if answer != "ok"]
    assert all(isinstance(error, JudgeBudgetSpent) and "judge.budget = 3" in str(error) for error in spent)
    resumed = ask(JudgeClient(JudgeEndpoint(chosen), chosen, tmp_path), *"af")
    assert resumed[0] == "ok" and isinstance(resumed[1], JudgeBudgetSpent) and len(server.requests) == 3


def test_no_more_questions_at_once_than_allowed(serve):
    def slow(handler):
        time.sleep(0.05)
        return said("ok")

    server = serve(slow)
    chosen = settings(server, concurrency=3)
    assert ask(JudgeClient(JudgeEndpoint(chosen), chosen), *"abcdefghijkl") == ["ok"] * 12
    assert 2 <= server.busiest <= 3


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        ({"prompt_tokens": 30, "completion_tokens": 4, "total_tokens": 34}, (30, 4)),
        ({"prompt_tokens": "many"}, (0, 0)),
        (None, (0, 0)),
    ],
)
def test_an_endpoint_tells_what_it_read_and_wrote_once(serve, tmp_path, usage, tokens):
    status, body = said("ok")
    chosen = settings(serve((status, {**body, "usage": usage})))
    client = JudgeClient(JudgeEndpoint(chosen), chosen, tmp_path)

    async def twice():
        answers = [await client(WHY) for _ in range(2)]
        await client.close()
        return answers

    assert asyncio.run(twice()) == [Answer("ok", *tokens), Answer("ok")]  # the second one was kept


def test_an_answer_may_be_as_long_as_its_question_needs(serve, tmp_path):
    server = serve(said("short"), said("long"))
    chosen = settings(server)  # judge.max_tokens = 64

    def again():
        return JudgeClient(JudgeEndpoint(chosen), chosen, tmp_path)

    found = [ask(again(), worded("Why?", tokens)) for tokens in (63, 65, 0)]
    assert found == [["short"], ["long"], ["short"]]  # what may be longer is asked anew, and kept apart
    assert [body["max_tokens"] for _, body in server.requests] == [64, 65]
