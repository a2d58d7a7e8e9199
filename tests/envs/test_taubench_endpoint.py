"""TauBench's simulated customer, over a real OpenAI-compatible server on the loopback interface."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

import hindsight.envs.taubench.endpoint as endpoint
from hindsight.envs.base import EnvError
from hindsight.envs.taubench.env import TauFamily
from hindsight.envs.taubench.settings import TauSettings, User
from hindsight.envs.taubench.upstream import STOP
from hindsight.envs.tool_calls import Call, write_calls

KEY = "sk-a-secret-of-the-tests"


class Server(ThreadingHTTPServer):
    """Answers every completion with the next of `answers`: words, calls, a status, raw bytes or a delay."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers, self.requests, self.keys, self.paths = [], [], [], []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        self.server.paths.append(self.path)
        self.reply(200, {"object": "list", "data": [{"id": "served", "object": "model", "created": 0}]})

    def do_POST(self):
        self.server.paths.append(self.path)
        self.server.keys.append(self.headers["Authorization"])
        self.server.requests.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        answer = self.server.answers.pop(0)
        if isinstance(answer, float):
            time.sleep(answer)
            answer = "late"
        if isinstance(answer, int):
            self.reply(answer, {"error": {"message": f"refused {self.headers['Authorization']}"}})
        elif isinstance(answer, bytes):
            self.reply(200, answer)
        else:
            self.reply(200, completion(answer))

    def reply(self, status, body):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def completion(answer):
    message = {"role": "assistant", "content": None}
    if isinstance(answer, str):
        message["content"] = answer
    else:
        message["tool_calls"] = [
            {"id": f"c{number}", "type": "function", "function": {"name": name, "arguments": arguments}}
            for number, (name, arguments) in enumerate(answer)
        ]
    choice = {"index": 0, "finish_reason": "stop", "message": message}
    return {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(endpoint, "PAUSE", 0.01)
    monkeypatch.setenv("TAU_TEST_KEY", KEY)
    server = Server()
    yield server
    server.shutdown()
    server.server_close()


def family(tmp_path, server, kind="telecom", **settings):
    user = {"source": "endpoint", "url": server.url, "model": "m", "api_key_env": "TAU_TEST_KEY"}
    user |= {"timeout": 5} | settings
    return TauFamily(TauSettings(name="taubench", kinds=[kind], user=User(**user)), tmp_path)


@pytest.fixture
def play(tmp_path, server):
    """Make an environment with these settings of its user and reset it to its first task."""
    made = []

    def start(kind="telecom", **settings):
        chosen = family(tmp_path, server, kind, **settings)
        made.append(chosen.make())
        return made[0], made[0].reset(chosen.manifest().train[0])

    yield start
    for env in made:
        env.close()


def test_a_model_plays_the_customer_with_its_tools(server, play):
    server.answers = [
        "<think>who am I?</think>\nMy data is off.",
        [("toggle_data", "{}"), ("check_network_status", "{}")],
        "I did so\ud83d.",
        f"Thanks. {STOP}",
    ]
    env, first = play(temperature=0.5)
    assert (first.text, first.role) == ("My data is off.", "user")
    assert first.rules
    tool = env.step(write_calls([Call("get_customer_by_id", {"customer_id": "C1001"})]))
    assert tool.observation.role == "tool"
    assert env.step("Please toggle your data.").feedback == "I did so?."  # half a character is none
    last = env.step("Good.")
    assert (last.terminated, last.info["ended"]) == (True, "user_stop")
    assert server.keys == [f"Bearer {KEY}"] * 4
    assert {(request["model"], request["temperature"]) for request in server.requests} == {("m", 0.5)}
    assert all(len(request["tools"]) == 30 for request in server.requests)
    opening, _, third, fourth = [request["messages"] for request in server.requests]
    assert [message["role"] for message in opening] == ["system", "user"]
    assert "# User Simulation Guidelines" in opening[0]["content"]
    assert "Reason for call:" in opening[0]["content"]
    assert opening[1]["content"] == "Hi! How can I help you today?"
    roles = ["system", "user", "assistant", "user", "assistant", "tool", "tool"]
    assert [message["role"] for message in third] == roles
    assert third[3]["content"] == "Please toggle your data."
    called = [call["function"] for call in third[4]["tool_calls"]]
    assert called == [
        {"name": "toggle_data", "arguments": "{}"},
        {"name": "check_network_status", "arguments": "{}"},
    ]
    assert [message["tool_call_id"] for message in third[5:]] == ["c0", "c1"]
    assert [message["role"] for message in fourth] == [*roles, "assistant", "user"]


def test_customers_without_tools_are_offered_none(server, play):
    server.answers = ["Hello."]
    play("retail")
    assert "tools" not in server.requests[0]


def test_a_failed_try_is_followed_by_another(server, play):
    server.answers = [
        500,
        "",
        b"no json",
        b"{}",
        b'{"choices": [{}]}',
        [("f", "{")],
        [("f", "[NaN]")],
        "Hello.",
    ]
    _, first = play(retries=7, timeout=2)
    assert first.text == "Hello."
    assert len(server.requests) == 8
    assert all(request == server.requests[0] for request in server.requests)


def test_a_failing_endpoint_is_never_a_reward_and_its_key_is_not_told(server, play):
    server.answers = ["Hello.", 401, 401, 401]
    env, _ = play(retries=2)
    with pytest.raises(EnvError, match=r"3 tries.*AuthenticationError.*refused") as error:
        env.step("How can I help?")
    assert KEY not in str(error.value)
    assert len(server.requests) == 4
    with pytest.raises(EnvError, match="reset"):
        env.step("Hello?")


def test_a_slow_endpoint_times_out(server, play):
    server.answers = ["Hello.", 3.0, 3.0]
    env, _ = play(retries=1, timeout=0.3)
    start = time.monotonic()
    with pytest.raises(EnvError, match=r"2 tries.*APITimeoutError"):
        env.step("How can I help?")
    assert time.monotonic() - start < 2.5


def test_an_endpoint_that_is_not_there_fails(tmp_path, server):
    chosen = family(tmp_path, server, retries=0, timeout=2)
    server.shutdown()
    server.server_close()
    env = chosen.make()
    with pytest.raises(EnvError, match=r"1 tries.*APIConnectionError"):
        env.reset(chosen.manifest().train[0])


def test_a_customer_that_hangs_up_at_once_is_a_failure(server, play):
    server.answers = [STOP]
    with pytest.raises(EnvError, match="first message"):
        play()


def test_a_customer_that_never_stops_using_its_tools_is_cut_off(server, play):
    server.answers = ["Hello.", *[[("check_network_status", "{}")]] * 200]
    env, _ = play()
    result = env.step("Go on.")
    assert (result.reward, result.terminated, result.truncated) == (0.0, False, True)
    assert result.info["ended"] == "max_steps"
    assert result.feedback == ""


def test_a_runs_own_model_is_for_runs(tmp_path, server):
    with pytest.raises(EnvError, match=r"env\.user\.source=engine is served by .* runs alone"):
        family(tmp_path, server, source="engine", url="").make()


def test_an_endpoint_that_serves_one_model_need_not_be_told_its_name(tmp_path, server):
    chosen = family(tmp_path, server, model="", api_key_env="TAU_TEST_NO_KEY")
    server.answers = ["Hello.", "Go on."]
    env = chosen.make()
    assert env.reset(chosen.manifest().train[0]).text == "Hello."
    env.step("Yes?")
    env.close()
    assert [request["model"] for request in server.requests] == ["served"] * 2
    assert server.paths == ["/v1/models", "/v1/chat/completions", "/v1/chat/completions"]
    assert server.keys == ["Bearer none"] * 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"url": ""}, "env.user.url"),
        ({"timeout": 10.0, "retries": 2}, r"env.step_timeout=20 is less than the 30 s.*3 tries of 10 s"),
        ({"timeout": 9.0, "retries": 1, "source": "engine"}, None),
    ],
)
def test_a_user_that_cannot_be_in_time_is_named(tmp_path, server, settings, message):
    if message is None:
        family(tmp_path, server, **settings)
        return
    with pytest.raises(ValueError, match=message):
        family(tmp_path, server, **settings)
