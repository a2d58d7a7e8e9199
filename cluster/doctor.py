"""What a run needs of this machine, checked one by one: each finding that is not fine says what to do."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from hindsight.cluster.failures import RunError
from hindsight.cluster.links import LinkError, links_summary, measure_links
from hindsight.cluster.machines import gpu_memory, listens, this_machine
from hindsight.cluster.planning import plan_run
from hindsight.configs.check import FREE_GIB
from hindsight.configs.paths import cache_root
from hindsight.configs.registry import ENVIRONMENTS
from hindsight.configs.schema import Config, Env
from hindsight.envs.base import EnvError, Observation
from hindsight.envs.registry import make_family
from hindsight.rollout.conversation import Conversation
from hindsight.rollout.models import EMBEDDED, ModelMissing, ModelUnfit, resolve
from hindsight.rollout.render import Renderer, load_renderer
from hindsight.rollout.template import TemplateError

PACKAGES = ("torch", "vllm", "deepspeed", "ray", "transformers")
SHARED_GIB = 1.0  # of /dev/shm, where Ray keeps weights and trajectories in passing
MINIATURE = [  # nano, one step
    *("steps=1", "env.train_tasks=4", "env.eval_tasks=2", "env.max_turns=8", "env.slots=2", "sft.demos=2"),
    *("sft.epochs=1", "rollout.num_groups=1", "rollout.group_size=4", "rollout.max_tokens=8"),
    *("evaluate.episodes=1", "evaluate.cold_episodes=1", "cluster.dashboard_port=0"),
]
LIMIT = 900.0  # seconds for the miniature


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    what: str
    found: str
    fix: str = ""  # what to do; empty: it is fine


def examine(config: Config) -> Iterator[Finding]:
    """Check packages, devices, disks, ports, template, environments, and whether the run of `config` fits."""
    yield from packages()
    yield device()
    yield links()
    yield from memory()
    yield compiler()
    yield dashboard_port(config.cluster.dashboard_port)
    yield template(config)
    for name in ENVIRONMENTS.builtin:
        yield environment(name, needed=name == config.env.name)
    yield fits(config)


def packages() -> Iterator[Finding]:
    """The versions of what computes."""
    for name in PACKAGES:
        found = next((held for held in (name, f"{name}-cpu") if _version(held)), None)
        wrong = "" if found else "run `make setup`, or see docs/install.md"
        yield Finding(name, f"{_version(found)} ({found})" if found else "not installed", wrong)


def device() -> Finding:
    """Whether torch can use the GPUs that the driver shows."""
    import torch

    there, usable = gpu_memory(), torch.cuda.device_count()
    if not there:
        return Finding("GPU", "none: runs use the CPU")
    names = f"{len(there)} with {min(there):.0f} GiB, {usable} usable by torch {torch.__version__}"
    if usable:
        return Finding("GPU", names)
    fix = "install the GPU packages (`VARIANT=gpu make setup`) or a driver for their CUDA version"
    return Finding("GPU", names, fix)


def links() -> Finding:
    """Whether all pairs of GPUs reach each other over NCCL, and how fast."""
    import torch

    count = torch.cuda.device_count()
    if count < 2:
        return Finding("NCCL", f"not checked: a pair needs two GPUs, and torch can use {count}")
    try:
        return Finding("NCCL", links_summary(measure_links(count, "nccl")))
    except LinkError as error:
        fix = (
            f"{error}. NCCL_DEBUG=INFO says more, `nvidia-smi topo -m` how the GPUs are connected. If it "
            "works with NCCL_P2P_DISABLE=1, set that, or mend peer access (IOMMU, ACS)"
        )
        return Finding("NCCL", "fails", fix)


def template(config: Config) -> Finding:
    """Whether the model's chat template carries an episode, in which the sampled actions are found again."""
    name, path = "chat template", config.model.path
    try:
        folder = str(resolve(path)) if path in EMBEDDED else path
        renderer = load_renderer(folder, config)
        length = two_turns(renderer)
    except (ModelMissing, ModelUnfit, TemplateError) as error:
        return Finding(name, f"{path} cannot be used", str(error))
    except OSError as error:  # transformers': neither a folder nor, in this network, a model of the hub
        return Finding(name, f"not checked: {path} cannot be read here ({str(error).splitlines()[0][:100]})")
    return Finding(name, f"{path}: an episode of two turns has {length} tokens, its actions are found again")


def two_turns(renderer: Renderer) -> int:
    """The number of tokens of an episode of two turns.

    Raises:
        TemplateError: the action of a response cannot be found in its tokens.
    """
    talk, actions = Conversation(renderer), ("look", "go north")
    for action in actions:
        talk.prompt(Observation("You are in a room.", actions))
        reply = talk.append_sampled(renderer.respond(action))
        span, ids = reply.action_span, talk.sequences()[reply.sequence].ids
        if span is None or action not in renderer.decode(ids[span.start : span.end]):
            raise TemplateError(
                f"no action is found in the response {reply.text!r}, written as the model is asked to: set "
                "another model, or another prompt.preset"
            )
    return sum(len(sequence.ids) for sequence in talk.sequences())


def memory() -> Iterator[Finding]:
    """RAM, shared memory and the disks that runs and caches are on."""
    yield Finding("RAM", f"{this_machine().ram_gib:.0f} GiB")
    for what, folder, least, fix in (
        ("shared memory", Path("/dev/shm"), SHARED_GIB, "give a container more: --shm-size=8g"),
        ("disk of runs", Path.cwd(), FREE_GIB, "free some space, or set `out`"),
        ("disk of caches", cache_root(), FREE_GIB, "free some space, or set HINDSIGHT_CACHE"),
    ):
        there = next(path for path in (folder, *folder.parents) if path.exists())
        free = shutil.disk_usage(there).free / 2**30
        yield Finding(what, f"{free:.1f} GiB free in {there}", fix if free < least else "")


def compiler() -> Finding:
    """DeepSpeed compiles its collectives when the first learner starts."""
    found = shutil.which("g++")
    return Finding("compiler", found or "no g++", "" if found else "install g++, which DeepSpeed needs")


def dashboard_port(port: int) -> Finding:
    """A local Ray needs the dashboard's port, unless that is 0."""
    if port and listens("127.0.0.1", port):
        fix = "set cluster.dashboard_port to a free port or 0, or join the running Ray with --address auto"
        return Finding("dashboard port", f"{port} is in use", fix)
    return Finding("dashboard port", f"{port} is free" if port else "no dashboard")


def environment(name: str, needed: bool) -> Finding:
    """Whether an environment has its package and tasks. Not fine without, if it is `needed`."""
    try:
        tasks = make_family(Env(name=name, train_tasks=1, eval_tasks=1)).manifest()
    except EnvError as error:
        return Finding(name, "not ready", str(error)) if needed else Finding(name, f"not ready: {error}")
    return Finding(name, f"{len(tasks.train) + len(tasks.evaluation)} tasks listed")


def fits(config: Config) -> Finding:
    """Whether the run fits on this machine."""
    try:
        made = plan_run(config, [this_machine()], config.model.path)
    except RunError as error:
        return Finding("plan", "does not fit on this machine", str(error))
    roles = dict.fromkeys(place.role for place in made.places)
    return Finding("plan", ", ".join(f"{len(made.of(role))} {role}" for role in roles))


def miniature(gpu: bool) -> Iterator[Finding]:
    """Train the nano model for one step in processes of their own, and report the seconds of each part."""
    with tempfile.TemporaryDirectory(prefix="hindsight-doctor-") as folder:
        own = [f"out={folder}/run", f"cluster.gpus={'required' if gpu else 'none'}"]
        command = [sys.executable, "-m", "hindsight", "train", "nano", *MINIATURE, *own]
        began = time.monotonic()
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
        except subprocess.TimeoutExpired:
            fix = f"run `{' '.join(command[2:-2])}` and look where it stands with `hindsight top runs/nano`"
            yield Finding("one step of nano", f"not done within {LIMIT:g} s", fix)
            return
        if done.returncode:
            yield Finding("one step of nano", "failed", (done.stderr or done.stdout)[-2000:])
            return
        yield Finding(
            "one step of nano", f"done in {time.monotonic() - began:.1f} s with starts and checkpoint"
        )
        rows = [json.loads(line) for line in Path(folder, "run/metrics.jsonl").read_text().splitlines()]
    [step] = [row for row in rows if row["kind"] == "train"]
    for name, seconds in step.items():
        if name.startswith("time/"):
            yield Finding(f"one step of nano: {name.removeprefix('time/')}", f"{seconds:.1f} s")
    gap = step["weight_sync/logprob_gap"]
    yield Finding("one step of nano: log-prob gap", f"{gap:.1e} nats between learner and engine")


def _version(name: str | None) -> str:
    try:
        return version(name) if name else ""
    except PackageNotFoundError:
        return ""
