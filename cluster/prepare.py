"""What a run has before Ray starts: its folder, the checkpoint to resume from, the model, the tasks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from hindsight.cluster.failures import RunError
from hindsight.cluster.folder import open_folder
from hindsight.cluster.report.run_folder import FAILURES
from hindsight.cluster.set_aside import SetAsideTasks
from hindsight.cluster.view import View
from hindsight.configs.schema import Config
from hindsight.envs.base import EnvFamily
from hindsight.envs.panels import find_panels
from hindsight.envs.registry import make_family
from hindsight.envs.tasks import Manifest, Panel
from hindsight.learner.checkpoint import checkpoint_step, read_state
from hindsight.rollout.models import resolve
from hindsight.rollout.render import Renderer, load_renderer


@dataclass(frozen=True)
class Ready:
    """What a run has before Ray starts."""

    config: Config
    newest: Path | None  # the checkpoint to resume from
    model: Path
    renderer: Renderer
    family: EnvFamily
    manifest: Manifest
    panels: tuple[Panel, ...]  # that are evaluated
    set_aside: SetAsideTasks


def prepare_run(config: Config, view: View) -> Ready:
    """Open the run's folder, the model and the tasks: whatever is wrong with them is known before Ray starts.

    Raises:
        RunError: it cannot start; nothing that existed has been changed.
        EnvError, ModelMissing, ModelUnfit, TemplateError: the tasks or the model are missing or do not fit.
    """
    view.phase("preparing the model and the tasks")
    newest = open_folder(config, view.say)
    view.keep(Path(config.out))
    view.reach(checkpoint_step(newest) if newest else 0, config.steps)
    view.say(f"output directory: {config.out}")
    view.say("preparing the model and the tasks")
    model = resolve(config.model.path)
    renderer = load_renderer(str(model), config)
    family = make_family(config.env)
    require_references(config, family)
    manifest = family.manifest()
    view.say(
        f"{len(manifest.train)} training tasks, {len(manifest.evaluation)} held out, digest {manifest.digest}"
    )
    panels = find_panels(family, manifest, config.evaluate.panels)
    for line in (*panels, *config.env.caveats):
        view.say(str(line))
    if newest is not None:
        require_same_run(config, newest, manifest)
    set_aside = SetAsideTasks.load(Path(config.out, FAILURES), manifest.train, resumes=newest is not None)
    return Ready(config, newest, model, renderer, family, manifest, panels, set_aside)


def require_references(config: Config, family: EnvFamily) -> None:
    """Check that an environment without reference solutions is asked for none.

    Raises:
        RunError: a setting needs them; the message names it.
    """
    needs = {
        f"sft.demos = {config.sft.demos}": (config.sft.demos > 0, "set it to 0"),
        f"feedback.sources = {config.feedback.sources}": (
            config.feedback.needs_solution,
            "leave out reference",
        ),
        "evaluate.agent = react": (config.evaluate.agent == "react", "choose another one"),
    }
    wrong = [f"{setting}: {fix}" for setting, (needed, fix) in needs.items() if needed]
    if wrong and not family.has_references:
        raise RunError(f"{family.name} has no reference solutions, which these need. " + "; ".join(wrong))


def continued(config: Config, newest: Path | None) -> Config:
    """`config` with the checkpoint's type of weights, where the plan may choose it."""
    if newest is None or config.model.dtype != "auto":
        return config
    return replace(config, model=replace(config.model, dtype=read_state(newest)["dtype"]))


def require_same_run(config: Config, folder: Path, manifest: Manifest) -> None:
    """Check that a checkpoint is of these tasks, and has what the method needs.

    Raises:
        RunError: it is not, or has not.
    """
    saved = read_state(folder)
    if saved["tasks"] != manifest.digest:
        raise RunError(
            f"{folder} belongs to other tasks (digest {saved['tasks']}, now {manifest.digest}). "
            "Use the same env settings, or set another `out`."
        )
    if saved["step"] == 0:  # the scorers equal the student, and the critic is untrained
        return
    parts = {
        "teacher": (config.needs_teacher, "teacher.safetensors"),
        "reference": (config.needs_reference, "reference.safetensors"),
        "critic": (config.credit.critic, "critic"),
    }
    for name, (needed, file) in parts.items():
        if needed and not (folder / file).exists():
            raise RunError(
                f"{folder} has no {name}. Keep the method and its settings, "
                "or start a new run with another `out`."
            )
