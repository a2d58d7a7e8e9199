"""Every problem of a configuration at once, and a configuration printed with the meaning of its settings."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import yaml

from hindsight.configs.environ import PASSWORD_IN_ADDRESS
from hindsight.configs.paths import lasting
from hindsight.configs.registry import FEEDBACK_SOURCES, REGISTRIES
from hindsight.configs.schema import Config
from hindsight.configs.setting import settings

FREE_GIB = 0.5  # least free disk space to start with; a run also stops cleanly when the disk fills up later


def check_config(config: Config) -> list[str]:
    """Every problem of `config`, each naming key, value and what is allowed; empty if it can run.

    Looks at the file system (`out`, `env.data`, `model.path`), never at a GPU, a port or the network.
    """
    ranges = [
        f"{item.key} = {item.value!r}: expected {item.expected}"
        for item in settings(config)
        if not item.allowed
    ]
    sections = [getattr(config, name) for name in REGISTRIES]
    extensions = [problem for section in sections for problem in section.problems(config)]
    rules = (_lengths, _update, _feedback, _judge, _agent, _paths)
    return [*ranges, *extensions, *(problem for rule in rules for problem in rule(config))]


def _lengths(config: Config) -> Iterator[str]:
    """Everything must fit into a context, and a context into every token budget."""
    longest, scores = config.model.max_length, config.needs_teacher or config.needs_reference
    shorter = f"must be less than model.max_length = {longest}"
    at_least = f"cannot hold a full sequence: it must be at least model.max_length = {longest}"
    if config.rollout.max_tokens >= longest:
        yield f"rollout.max_tokens = {config.rollout.max_tokens} leaves no room for a prompt: it {shorter}"
    if config.feedback.on and config.feedback.max_tokens >= longest:
        yield f"feedback.max_tokens = {config.feedback.max_tokens} leaves no room for a prompt: it {shorter}"
    if config.learner.micro_batch_tokens < longest:
        yield f"learner.micro_batch_tokens = {config.learner.micro_batch_tokens} {at_least}"
    if scores and config.teacher.batch_tokens < longest:
        yield f"teacher.batch_tokens = {config.teacher.batch_tokens} {at_least}"


def _update(config: Config) -> Iterator[str]:
    """What the learner does with a step."""
    loss, learner, trains = config.loss, config.learner, config.steps > 0
    if trains and loss.policy == 0 and config.signal.loss_weight == 0:
        yield "loss.policy = 0 leaves nothing to train on: set it above 0, or signal.name=distill"
    if trains and loss.kl > 0 and loss.policy == 0:
        yield f"loss.kl = {loss.kl} is part of the policy loss, but loss.policy = 0: change one of them"
    if trains and config.rollout.group_size == 1 and loss.policy > 0 and not config.credit.critic:
        yield (
            "rollout.group_size = 1 makes every advantage 0, since credit.advantage = "
            f"{config.credit.advantage} compares siblings: set it to at least 2, or credit.advantage=gae, or "
            "loss.policy=0"
        )
    if 0 < loss.dual_clip <= 1:
        yield f"loss.dual_clip = {loss.dual_clip} would clip ordinary losses: set it to 0 (off) or above 1"
    if 0 < loss.tis_cap < 1:
        yield f"loss.tis_cap = {loss.tis_cap} would cap on-policy tokens: set it to 0 (off) or at least 1"
    if learner.zero_stage == 0 and config.model.dtype == "float32":
        yield (
            "learner.zero_stage = 0 with model.dtype = float32 leaves DeepSpeed without a gradient norm: set "
            "learner.zero_stage=1 or model.dtype=bfloat16"
        )


def _feedback(config: Config) -> Iterator[str]:
    names = config.feedback.sources
    if len(set(names)) < len(names):
        yield f"feedback.sources = {names} names a source twice: remove one"
    if config.feedback.control == "shuffled" and not config.signal.by_token:
        yield (
            f"feedback.control = shuffled changes nothing with signal.name = {config.signal.name}, which "
            "does not weigh sampled tokens one by one: choose another control, or signal.divergence=sampled"
        )
    apart = [name for name in names if not FEEDBACK_SOURCES.settings(name)().pools]
    if config.feedback.granularity == "anchor" and (apart or not names):
        yield (
            f"feedback.granularity = anchor cannot merge hints of feedback.sources = {apart or names}: use "
            "sibling, immediate, next_observation and future"
        )


def _judge(config: Config) -> Iterator[str]:
    judge = config.judge
    if not config.feedback.judged or judge.source == "engine":
        return
    if not (judge.url and judge.model):
        yield "judge.source = endpoint needs judge.url (including /v1) and judge.model"
    if PASSWORD_IN_ADDRESS.search(judge.url):
        yield "judge.url holds a password, which logs would show: put it into the variable judge.api_key_env"
    if not os.environ.get(judge.api_key_env):
        yield (
            f"judge.api_key_env = {judge.api_key_env!r} is not in the environment: export it (any text, if "
            "the endpoint needs no key)"
        )


def _agent(config: Config) -> Iterator[str]:
    """What is evaluated; the prompting agents think before each action and see the whole episode."""
    agent, prompt, panels = config.evaluate.agent, config.prompt, config.evaluate.panels
    if not panels or len(set(panels)) < len(panels):
        yield f"evaluate.panels = {panels}: name at least one panel, and none twice"
    if agent != "student" and not (prompt.preset == "history" and prompt.think):
        yield (
            f"evaluate.agent = {agent} has prompt.preset = {prompt.preset} and prompt.think = "
            f"{prompt.think}: set prompt.preset=history and prompt.think=true"
        )


def _paths(config: Config) -> Iterator[str]:
    data, model = config.env.data, config.model.path
    if data is not None and not Path(data).expanduser().is_dir():
        yield (
            f"env.data = {data!r} is not a folder: give the folder of {config.env.name}'s official data "
            "(see docs/environments.md), or set env.data=null to run without it"
        )
    if model.startswith(("/", "./", "../", "~")) and not Path(model).expanduser().is_dir():
        yield (
            f"model.path = {model!r} is not a folder: give one written by `save_pretrained`, a hub name, or "
            "an embedded model such as smollm2-135m"
        )
    out = lasting(config.out)
    parent = next(folder for folder in (out, *out.parents) if folder.exists())
    if not parent.is_dir():
        yield f"out = {config.out!r} cannot be a folder: {parent} is a file; choose another"
    elif not os.access(parent, os.W_OK | os.X_OK):
        yield f"out = {config.out!r} cannot be written: no permission in {parent}; choose another folder"
    elif (free := shutil.disk_usage(parent).free / 2**30) < FREE_GIB:
        yield (
            f"out = {config.out!r} has {free:.2f} GiB free on its disk, and a run needs at least {FREE_GIB} "
            "GiB: free some space or choose another folder"
        )


def changed_settings(before: str, config: Config) -> list[str]:
    """Settings that differ from `before`, which `render` wrote: "key: before → now" each."""
    earlier = yaml.safe_load(before)
    lines = []
    for item in settings(config):
        section, _, name = item.key.rpartition(".")
        held = earlier.get(section, {}) if section else earlier
        if name in held and held[name] != item.value:
            lines.append(f"{item.key}: {held[name]} → {item.value}")
    return lines


def render(config: Config) -> str:
    """`config` as YAML that `configs.load` reads back to an equal one, with the meaning of each setting."""
    lines: list[str] = []
    section = ""
    for item in settings(config):
        parent, _, name = item.key.rpartition(".")
        if parent != section:
            section = parent
            lines += ["", f"{section}:"]
        text = yaml.safe_dump(item.value, default_flow_style=True, allow_unicode=True, width=10_000)
        text = text.removesuffix("\n").removesuffix("\n...")
        lines.append(f"{'  ' if parent else ''}{name}: {text}  # {item.help} ({item.expected})")
    return "\n".join(lines) + "\n"
