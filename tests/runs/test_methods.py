"""Two training steps of every method on ALFWorld and on WebShop: real actors, the nano model."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import ray
from naive_weights import NAIVE, gaps_of, naive_advantages
from safetensors.torch import load_file
from shared_actors import Shared

from hindsight.cluster.report.definitions import undefined
from hindsight.cluster.report.groups import read_group
from hindsight.cluster.report.run_folder import RunFolder
from hindsight.configs.load import load_config, methods
from hindsight.configs.schema import Config

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
TINY = [
    "model.path=nano",
    "model.max_length=1536",
    "steps=2",
    "env.train_tasks=6",
    "env.eval_tasks=2",
    "env.slots=4",
    "rollout.num_groups=1",
    "rollout.group_size=4",
    "rollout.max_tokens=24",
    "rollout.max_num_seqs=4",
    "sft.demos=0",
    "sft.batch_rows=4",
    "sft.lr=3e-3",
    "feedback.max_tokens=128",
    "evaluate.episodes=1",
    "evaluate.cold_episodes=0",
    "checkpoint.every=9",
    "learner.micro_batch_tokens=4096",
    "teacher.batch_tokens=4096",
]
TURNS = {"alfworld": 6, "webshop": 3}
# What judges answer, whatever happened: the nano model's own answers say nothing that can be read.
ANSWER = {
    "turns": [{"turn": n, "verdict": "wrong", "cause": "It did not help.", "fix": None} for n in range(1, 7)],
    "failures": [{"turn": 2, "correction": "Look around first."}],
    "episode": "Look around first.",
    "steps": [{"turn": 1, "skill": "Open what is closed."}],
}


def settings(method: str, out: Path, *more: str, env: str = "alfworld") -> Config:
    differ = "credit.inadmissible_penalty=1"  # so that siblings' returns do, where none succeeds
    overrides = [*TINY, f"env.max_turns={TURNS[env]}", f"out={out}", f"method={method}", differ]
    # Two steps of a judge with the nano model's answers: they are read or counted as unreadable.
    judged = ["judge.source=engine", "judge.max_tokens=64", "judge.characters=1500"]
    return load_config(CONFIGS / f"{env}.yaml", overrides + judged + list(more))


class Analyst(BaseHTTPRequestHandler):
    """An OpenAI-compatible endpoint that always says the same."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        choice = {"index": 0, "finish_reason": "stop"}
        choice |= {"message": {"role": "assistant", "content": json.dumps(ANSWER)}}
        usage = {"prompt_tokens": 100, "completion_tokens": 50, "total_tokens": 150}
        said = {"id": "a", "object": "chat.completion", "created": 0, "model": "m"}
        body = json.dumps({**said, "choices": [choice], "usage": usage}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def analyst(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Settings of a judge that is such an endpoint."""
    monkeypatch.setenv("ANALYST_KEY", "any")
    with ThreadingHTTPServer(("127.0.0.1", 0), Analyst) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"judge.url=http://127.0.0.1:{server.server_port}/v1"
        yield ["judge.source=endpoint", url, "judge.model=m", "judge.api_key_env=ANALYST_KEY"]
        server.shutdown()


@pytest.fixture(scope="module")
def warmed(shared: Shared, tmp_path_factory: pytest.TempPathFactory) -> Shared:
    """A student after a few demonstrations: some answers parse and some do not, so advantages differ."""
    warm = ["steps=0", "sft.demos=48", "sft.epochs=6", "env.train_tasks=12", "env.max_turns=12"]
    out = f"out={tmp_path_factory.mktemp('warm') / 'run'}"
    with pytest.MonkeyPatch.context() as patch:
        shared.train(load_config(CONFIGS / "alfworld.yaml", [*TINY, out, *warm]), patch)
    return shared


def train(shared: Shared, config: Config, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The rows of the run's training steps."""
    shared.train(config, monkeypatch)
    lines = (Path(config.out) / "metrics.jsonl").read_text().splitlines()
    assert undefined(map(json.loads, lines)) == set()
    steps = [row for row in map(json.loads, lines) if row["kind"] == "train"]
    assert [row["step"] for row in steps] == [1, 2]
    return steps


def total(steps: list[dict[str, Any]], name: str) -> float:
    return sum(row.get(name, 0.0) for row in steps)


@pytest.mark.parametrize("name", methods())
def test_two_steps(
    name: str, warmed: Shared, analyst: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(name, tmp_path / "run", *analyst)
    steps = train(warmed, config, monkeypatch)
    assert total(steps, "failures/total") == 0 < total(steps, "learner/samples")
    distills = config.signal.loss_weight > 0
    if name != "grsd":  # its guide needs a success and a failure
        assert (total(steps, "teacher/spans") > 0) == config.signal.asks_teacher
        assert (total(steps, "teacher/seconds_busy") > 0) == config.signal.asks_teacher
    assert (total(steps, "learner/signal_tokens") > 0) == distills
    if config.feedback.judged and distills:
        assert total(steps, "feedback/tokens_read") > 0 == total(steps, "feedback/unreadable")
    assert (total(steps, "critic/samples") > 0) == config.credit.critic
    if config.loss.kl > 0:
        assert "learner/kl" in steps[0] or "learner/kl" in steps[1]
    check_record(config, steps)


def check_record(config: Config, steps: list[dict[str, Any]]) -> None:
    """The record has what the step's metrics count."""
    run = RunFolder(config.out)
    for key, row in zip(("step-000001", "step-000002"), steps, strict=True):
        turns = [turn for own in run.tokens(key).values() for turn in own.values()]
        tokens = {
            name: [one for turn in turns for one in turn[name]] for name in ("teacher_logprob", "share")
        }
        scored = [one for one in tokens["teacher_logprob"] if one is not None]
        assert len(scored) == row["teacher/span_tokens"]
        if config.loss.policy > 0 and row.get("learner/loss") is not None and None not in tokens["share"]:
            assert sum(tokens["share"]) == pytest.approx(1.0, abs=1e-4)
        if config.loss.policy == 0:
            assert set(tokens["share"]) == {None}
        assert all((turn["value"][0] is not None) == config.credit.critic for turn in turns)
        if config.feedback.judged and config.signal.loss_weight > 0:
            notes = [note for e in run.episodes(key) for turn in e["turns"] for note in turn.get("notes", ())]
            assert {note["kind"] for note in notes} <= {"diagnosis", "target"} and notes


OWN = {
    "grsd": [],
    "agentopsd": ["feedback.sources=[immediate]"],  # there are no skills for a coin
    "opid": ["signal.strength=1"],  # of 0.001 rounding would leave little
}


@pytest.mark.parametrize("name", OWN)
def test_recorded_columns_are_those_of_a_naive_version(
    name: str, warmed: Shared, analyst: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of a coin's episodes succeed, so GRSD's guide is written and shown, too."""
    coin = [f"env.name={Path(__file__).with_name('coin_env.py')}", "env.max_turns=3", "env.kinds=[]"]
    config = settings(name, tmp_path / "run", *coin, *OWN[name], "rollout.group_size=8", *analyst)
    steps = train(warmed, config, monkeypatch)
    assert total(steps, "failures/total") == 0 < total(steps, "teacher/spans")
    assert all(math.isfinite(row["learner/loss"]) for row in steps if row["teacher/spans"])
    run, compared = RunFolder(config.out), 0
    for key in ("step-000001", "step-000002"):
        [row] = run.groups(key)
        group, tokens = read_group(row).group, run.tokens(key)
        advantages = naive_advantages(group, config)
        gaps = [[gaps_of(tokens[e][n]) for n in range(len(own))] for e, own in enumerate(advantages)]
        factors = NAIVE[name](group, advantages, gaps)
        for e, n in ((e, n) for e, own in enumerate(advantages) for n in range(len(own))):
            turn, advantage = tokens[e][n], advantages[e][n]
            assert turn["advantage"] == pytest.approx([advantage] * len(turn["ids"]), abs=2e-5)
            weights = [one for one in turn["weight"] if one is not None]
            assert len(weights) == len(gaps[e][n])
            if abs(advantage) > 0.1:  # else rounding decides
                assert weights == pytest.approx(factors[e][n], abs=1e-3)
                compared += sum(weight != 1.0 for weight in weights)
    assert compared > 10


def test_roles_that_take_turns(warmed: Shared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A judge on the engines, a critic, a reference policy: one at a time, and all get on."""
    more = ["cluster.sharing=in_turn", "credit.advantage=gae", "loss.kl=0.01", "rollout.num_groups=2"]
    steps = train(warmed, settings("serl_judge", tmp_path / "run", *more), monkeypatch)
    assert total(steps, "failures/total") == 0 < total(steps, "teacher/spans")
    awake: list[str] = []
    for event in warmed.switches[4:]:  # at the start each role leaves once
        role, what = event.split()
        awake = [*awake, role] if what == "wakes" else awake[: awake.index(role)]
        assert len(awake) <= 1
    phases = [event.split()[0] for event in warmed.switches[4:] if event.endswith("wakes")]
    assert set(phases) == {"engine", "teacher", "reference", "learner"}
    assert len(phases) <= 40  # two steps, an evaluation and a checkpoint


@pytest.mark.parametrize("name", ["gigpo", "ppo", "serl", "serl_anchor", "hero", "hint_sd"])
def test_another_environment(
    name: str, warmed: Shared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(name, tmp_path / "run", "rollout.group_size=2", env="webshop")
    steps = train(warmed, config, monkeypatch)
    assert total(steps, "failures/total") == 0 and total(steps, "rollout/episodes") == 4
    if config.signal.loss_weight > 0 and not config.feedback.judged:  # a judge's words are read by chance
        assert total(steps, "learner/signal_tokens") > 0
    assert (tmp_path / "run/checkpoints/step-00000002/model/config.json").is_file()


def test_a_critic_goes_on_where_it_was(
    warmed: Shared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One step, then one more by a critic that has nothing but the checkpoint: a new one says 0 of all."""

    def forget(rank: Any) -> None:
        for parameter in rank.engine.module.value_head.parameters():
            parameter.data.zero_()

    more = ["prompt.preset=window", "credit.step=turn", "loss.kl=0.01", "resume=auto"]
    out = tmp_path / "run"
    assert warmed.actors.critic is not None
    [rank] = warmed.actors.critic.ranks
    ray.get(rank.__ray_call__.remote(forget))
    warmed.train(settings("ppo", out, *more, "steps=1"), monkeypatch)
    ray.get(rank.__ray_call__.remote(forget))
    first, second = train(warmed, settings("ppo", out, *more), monkeypatch)
    assert first["critic/value_mean"] == 0 != second["critic/value_mean"]
    # A turn is a row and a step of its own, so the critic learns one position of each.
    assert first["critic/tokens"] == first["critic/samples"] == first["learner/samples"] > 4
    assert first["learner/tokens"] > first["critic/tokens"] and "learner/kl" in first


def test_an_adapter_and_its_average_go_on_where_they_were(
    warmed: Shared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second step of a run with a break before it is that of a run without."""
    lora = ["learner.lora.rank=4", "learner.lora.dropout=0.1", "resume=auto", "checkpoint.every=1"]
    lora += ["learner.lr=1e-2", "learner.schedule=linear", "learner.warmup_steps=0"]
    whole = train(warmed, settings("dense", tmp_path / "whole", *lora), monkeypatch)
    assert [row["learner/lr"] for row in whole] == [1e-2, 5e-3]
    assert total(whole, "learner/signal_tokens") > 0
    assert all(row["weight_sync/logprob_gap"] < 0.02 for row in whole)  # bfloat16: rounding only
    folders = [tmp_path / f"whole/checkpoints/step-0000000{step}" for step in (1, 2)]
    before, after = (load_file(folder / "model/model.safetensors") for folder in folders)
    assert {str(tensor.dtype) for tensor in after.values()} == {"torch.float32"}
    assert {name for name in before if not before[name].equal(after[name])} == {
        name for name in before if "proj" in name
    }
    adapter = load_file(folders[1] / "model/adapter/adapter_model.safetensors")
    teacher = load_file(folders[1] / "teacher.safetensors")
    assert json.loads((folders[1] / "model/adapter/adapter_config.json").read_text())["r"] == 4
    assert adapter.keys() == teacher.keys()
    moved = [teacher[name].sub(adapter[name].float()).abs().max() for name in adapter]
    assert min(moved) > 0  # the teacher lags behind the student

    shutil.copytree(tmp_path / "whole", tmp_path / "broken")
    shutil.rmtree(tmp_path / "broken/checkpoints/step-00000002")
    broken = train(warmed, settings("dense", tmp_path / "broken", *lora), monkeypatch)
    for name in ("rollout/turns_per_episode", "learner/signal_tokens", "learner/signal_loss"):
        assert broken[1][name] == pytest.approx(whole[1][name], rel=1e-4), name
    again = tmp_path / "broken/checkpoints/step-00000002"
    for file, theirs in (("model/adapter/adapter_model", adapter), ("teacher", teacher)):
        ours = load_file(again / f"{file}.safetensors")
        assert all((ours[name] - theirs[name]).abs().max() < 1e-4 for name in theirs)


def test_two_trials_of_reflexion(shared: Shared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a worked example from a real demonstration and lessons from a real engine."""
    policy = ["evaluate.agent=reflexion", "evaluate.trials=2", "prompt.think=true", "env.max_turns=12"]
    policy += ["steps=0", "evaluate.cold_episodes=2", "evaluate.example_characters=1000"]
    config = settings("serl", tmp_path / "run", *policy)
    shared.train(config, monkeypatch)
    [row] = map(json.loads, (tmp_path / "run/metrics.jsonl").read_text().splitlines())
    assert row["kind"] == "eval" and row["eval/episodes"] == 2
    assert 0 <= row["eval/success_trial_1"] <= row["eval/success_trial_2"] == row["eval/success"]
    lines = (tmp_path / "run/trajectories/eval-000000-before-warm-start.jsonl").read_text().splitlines()
    episodes = [json.loads(line) for line in lines]
    assert len(episodes) == 4 - 2 * row["eval/success_trial_1"]  # what succeeds is not tried again
    assert all("<think>To do: " in episode["preamble"] for episode in episodes)
    turns = sum(len(episode["turns"]) for episode in episodes)
    assert row["eval/tokens_read"] > 100 * turns and row["eval/tokens_written"] > turns


def test_strength_zero_runs_no_teacher_and_staleness_stays_bounded(
    warmed: Shared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = ["signal.strength=0", "feedback.sources=[]", "rollout.max_staleness=1", "sft.demos=4"]
    steps = train(warmed, settings("serl", tmp_path / "run", *plain), monkeypatch)
    assert [row["rollout/staleness"] for row in steps] == [0, 1]
    assert all(row["teacher/spans"] == 0 for row in steps)
    assert not (tmp_path / "run/checkpoints/step-00000002/teacher.safetensors").exists()
