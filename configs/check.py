"""What a configuration allows: every problem of one at once, and one printed with the meaning of its keys."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import Field, fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml

from hindsight.configs.paths import lasting
from hindsight.configs.schema import Config

SHARED = 0.5  # most of a shared GPU that an engine may take
FREE_GIB = 0.5  # least free disk space to start with; a run also stops cleanly when it fills up later


def settings(config: Any, prefix: str = "") -> Iterator[tuple[str, Field[Any], Any]]:
    """Every (dotted key, dataclass field, value) under `config`, in the order of the schema."""
    for item in fields(config):
        value = getattr(config, item.name)
        if is_dataclass(value):
            yield from settings(value, f"{prefix}{item.name}.")
        else:
            yield f"{prefix}{item.name}", item, value


def allowed(item: Field[Any]) -> str:
    """What a setting may be, in words: its type, then its choices or its range."""
    kinds = {
        "str": "text",
        "bool": "true or false",
        "str | None": "text or null",
        "list[str]": "a list of text",
    }
    kind = kinds.get(str(item.type), str(item.type))
    meta = item.metadata
    if meta["choices"]:
        return "one of " + ", ".join(meta["choices"]) + (f", or {meta['form']}" if meta["form"] else "")
    bounds = [f"at least {meta['low']}"] if meta["low"] is not None else []
    bounds += [f"at most {meta['high']}"] if meta["high"] is not None else []
    return f"{kind}, {' and '.join(bounds)}" if bounds else kind


def check(config: Config) -> list[str]:
    """Every problem of `config`, each naming key, value and what is allowed; empty where it can run.

    Looks at the file system (`out`, `env.data`, `model.path`), never at a GPU, a port or the network.
    """
    problems = [
        f"{key} = {value!r} is not allowed: {allowed(item)}"
        for key, item, value in settings(config)
        if not _within(item, value)
    ]
    return problems + _contradictions(config) + _paths(config)


def _within(item: Field[Any], value: Any) -> bool:
    low, high, choices = (item.metadata[name] for name in ("low", "high", "choices"))
    if value is None:
        return True  # only an optional setting can be null: loading has checked that
    elements = value if isinstance(value, list) else [value]
    if choices and not all(element in choices or _formed(item, element) for element in elements):
        return False
    if isinstance(value, float) and not abs(value) < float("inf"):  # rejects nan too
        return False
    return not ((low is not None and value < low) or (high is not None and value > high))


def _formed(item: Field[Any], text: str) -> bool:
    """Whether `text` has the form that the setting allows beside its choices."""
    form = item.metadata["form"]
    return bool(form) and re.fullmatch(re.sub(r"\w+", r"[\\w.]+", form), text) is not None


def _contradictions(config: Config) -> list[str]:
    """Settings that are fine alone and impossible together."""
    rules = [*_lengths(config), *_update(config), *_credit(config), *_feedback(config), _policy(config)]
    return [problem for broken, problem in rules if broken]


def _lengths(config: Config) -> list[tuple[bool, str]]:
    """Rules of what has to fit in a context, or a context in: (broken, problem)."""
    rollout, context = config.rollout, config.model.max_length
    return [
        (
            rollout.max_tokens >= context,
            f"rollout.max_tokens = {rollout.max_tokens} leaves no room for a prompt: "
            f"allowed is less than model.max_length = {context}",
        ),
        (
            config.feedback.max_tokens >= context,
            f"feedback.max_tokens = {config.feedback.max_tokens} leaves the teacher no room for the prompt: "
            f"allowed is less than model.max_length = {context}",
        ),
        (
            config.learner.micro_batch_tokens < context,
            f"learner.micro_batch_tokens = {config.learner.micro_batch_tokens} cannot hold a full sequence: "
            f"allowed is at least model.max_length = {context}",
        ),
        (
            (config.reweight.strength > 0 or config.distill.weight > 0 or config.loss.kl > 0)
            and config.teacher.batch_tokens < context,
            f"teacher.batch_tokens = {config.teacher.batch_tokens} cannot hold one full sequence: "
            f"allowed is at least model.max_length = {context}",
        ),
    ]


def _update(config: Config) -> list[tuple[bool, str]]:
    """Rules of what the learner does with a step: (broken, problem)."""
    return [
        (
            config.steps > 0 and config.loss.policy == 0 and config.distill.weight == 0,
            "loss.policy = 0 and distill.weight = 0 leave nothing to train on: set one of them above 0",
        ),
        (
            config.steps > 0 and config.loss.kl > 0 and config.loss.policy == 0,
            f"loss.kl = {config.loss.kl} is a part of the policy loss, and loss.policy = 0: set loss.kl=0, "
            "or loss.policy above 0",
        ),
        (
            config.distill.weight > 0 and not config.feedback.on,
            f"distill.weight = {config.distill.weight} has no use with feedback.source = none: name a source",
        ),
        (
            config.distill.weight > 0 and config.reweight.strength > 0,
            f"reweight.strength = {config.reweight.strength} and distill.weight = {config.distill.weight} "
            "use the teacher in two ways at once: set one of them to 0",
        ),
        (
            config.reweight.strength > 0 and not config.feedback.on,
            f"reweight.strength = {config.reweight.strength} has no use with feedback.source = none: "
            "set reweight.strength=0 (plain GRPO) or name a source",
        ),
        (
            0 < config.loss.dual_clip <= 1,
            f"loss.dual_clip = {config.loss.dual_clip} cuts ordinary losses: allowed is 0 (off) or above 1",
        ),
        (
            0 < config.loss.tis_cap < 1,
            f"loss.tis_cap = {config.loss.tis_cap} would cap on-policy tokens: "
            "allowed is 0 (off) or at least 1",
        ),
        (
            config.learner.zero_stage == 0 and config.model.dtype == "float32",
            "learner.zero_stage = 0 with model.dtype = float32 leaves DeepSpeed without a gradient norm: "
            "set learner.zero_stage to 1, which shards the optimizer alone, or model.dtype=bfloat16",
        ),
        (
            config.broadcasts and config.cluster.share_gpu,
            "weight_sync.transport = nccl with cluster.share_gpu = true has both ends on one GPU, which NCCL "
            "refuses: set weight_sync.transport=object_store",
        ),
        (
            config.cluster.share_gpu and config.rollout.gpu_memory_utilization > SHARED,
            f"rollout.gpu_memory_utilization = {config.rollout.gpu_memory_utilization} with "
            "cluster.share_gpu = true leaves learner "
            f"and teacher no room on the GPU: allowed is at most {SHARED}",
        ),
    ]


def _credit(config: Config) -> list[tuple[bool, str]]:
    """Rules of who a turn is compared with: (broken, problem)."""
    credit, learns = config.credit, config.loss.policy > 0
    return [
        (
            config.steps > 0 and config.rollout.group_size == 1 and learns and not credit.critic,
            "rollout.group_size = 1 makes every advantage 0: "
            f"credit.advantage = {credit.advantage} compares siblings, allowed is at least 2, "
            "or credit.advantage = gae, or loss.policy = 0",
        ),
        (
            credit.critic and not learns,
            "credit.advantage = gae would train a critic for nothing with loss.policy = 0: "
            "set loss.policy above 0, or another credit.advantage",
        ),
    ]


def _feedback(config: Config) -> list[tuple[bool, str]]:
    """Rules of what the teacher is shown and who writes it: (broken, problem)."""
    feedback, judge = config.feedback, config.judge
    pooled = ("immediate", "next_observation", "future")
    endpoint = feedback.judged and judge.source == "endpoint"
    return [
        (
            feedback.sibling == "only" and feedback.source != "none",
            f"feedback.source = {feedback.source} is not shown with feedback.sibling = only: "
            "set feedback.source=none, or feedback.sibling to or / and",
        ),
        (
            feedback.sibling in ("or", "and") and feedback.source == "none",
            f"feedback.sibling = {feedback.sibling} joins a source, and feedback.source = none: "
            "name one, or set feedback.sibling=only",
        ),
        (
            feedback.granularity == "anchor" and feedback.source not in pooled,
            f"feedback.granularity = anchor cannot pool feedback.source = {feedback.source}: "
            f"allowed are {', '.join(pooled)}",
        ),
        (
            feedback.anchor_feedback
            and (feedback.granularity == "step" or feedback.source not in pooled[1:]),
            "feedback.anchor_feedback = True adds to what anchors tell of next_observation or future: "
            f"set it to false with feedback.granularity = {feedback.granularity}, "
            f"feedback.source = {feedback.source}",
        ),
        (
            endpoint and not (judge.url and judge.model),
            "judge.source = endpoint needs judge.url (with its /v1) and judge.model",
        ),
        (
            endpoint and not os.environ.get(judge.api_key_env),
            f"judge.api_key_env = {judge.api_key_env!r} is not in the environment: export it (any text, "
            "where the endpoint asks for no key)",
        ),
    ]


def _policy(config: Config) -> tuple[bool, str]:
    """The prompting policies think before each action and see all that was before."""
    policy, prompt = config.evaluate.agent, config.prompt
    return (
        policy != "student" and not (prompt.preset == "history" and prompt.think),
        f"evaluate.agent = {policy} has prompt.preset = {prompt.preset}, prompt.think = {prompt.think}: "
        "set prompt.preset=history and prompt.think=true",
    )


def _paths(config: Config) -> list[str]:
    problems = []
    data, model = config.env.data, config.model.path
    if data is not None and not Path(data).expanduser().is_dir():
        problems.append(
            f"env.data = {data!r} is not a folder: name that of {config.env.name}'s official data "
            "(docs/environments.md says how to get them), or set env.data=null to play without"
        )
    if model.startswith(("/", "./", "../", "~")) and not Path(model).expanduser().is_dir():
        problems.append(
            f"model.path = {model!r} is not a folder: name one that `save_pretrained` wrote, a hub name, "
            "or an embedded model such as smollm2-135m"
        )
    out = lasting(config.out)
    parent = next(folder for folder in (out, *out.parents) if folder.exists())
    if not parent.is_dir():
        problems.append(f"out = {config.out!r} cannot be a folder: {parent} is a file; name another")
    elif not os.access(parent, os.W_OK | os.X_OK):
        problems.append(
            f"out = {config.out!r} cannot be written: no permission in {parent}; name another folder"
        )
    elif (free := shutil.disk_usage(parent).free / 2**30) < FREE_GIB:
        problems.append(
            f"out = {config.out!r} has {free:.2f} GiB free on its disk: a run needs at least {FREE_GIB} GiB; "
            "free some or name another folder"
        )
    return problems


def differences(before: str, config: Config) -> list[str]:
    """Settings that are not as in `before`, which `render` wrote: "key: before → now" each."""
    earlier = yaml.safe_load(before)
    lines = []
    for key, _, value in settings(config):
        section, _, name = key.rpartition(".")
        held = earlier.get(section, {}) if section else earlier
        if name in held and held[name] != value:
            lines.append(f"{key}: {held[name]} → {value}")
    return lines


def render(config: Config) -> str:
    """`config` as YAML that `configs.load` reads back to an equal one, its meaning beside each key."""
    lines: list[str] = []
    section = ""
    for key, item, value in settings(config):
        parent, _, name = key.rpartition(".")
        if parent != section:
            section = parent
            lines += ["", f"{section}:"]
        text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10_000)
        text = text.removesuffix("\n").removesuffix("\n...")
        lines.append(f"{'  ' if parent else ''}{name}: {text}  # {item.metadata['help']} ({allowed(item)})")
    return "\n".join(lines) + "\n"
