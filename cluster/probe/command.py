"""What `hindsight probe` does: pairs, hints, scores, figures. One process, without Ray or engines."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from hindsight.cluster.commands import checkpoint_of, find_model
from hindsight.cluster.failures import RunError
from hindsight.cluster.folder import storing
from hindsight.cluster.local import LocalScorer, recorded_judge
from hindsight.cluster.probe.figures import ProbeRow, probed
from hindsight.cluster.probe.pairs import recorded_pairs
from hindsight.cluster.probe.play import Played, play_tasks
from hindsight.cluster.probe.score import Reader, feedbacks, has_states
from hindsight.cluster.probe.show import Result, lines_below, result_table, write_result
from hindsight.cluster.replay import read_settings, settled
from hindsight.cluster.report.groups import GroupError, read_group
from hindsight.cluster.report.run_folder import CONFIG, RunFolder
from hindsight.cluster.view import View
from hindsight.configs.check import render
from hindsight.configs.method import Feedback
from hindsight.configs.schema import Config, Lora
from hindsight.envs.registry import make_family
from hindsight.rollout.adapter import FOLDER as ADAPTER
from hindsight.rollout.models import ModelMissing, resolve
from hindsight.rollout.render import Renderer, load_renderer
from hindsight.teacher.scorer import TeacherScorer

Found = tuple[list[Played], dict[str, str], str]  # groups with pairs; tasks without, and why; what they are


async def run_probe(config: Config, tasks: int, every: bool, run: Path | None = None) -> None:
    """Probe `model.path` and write the result below `out`.

    Args:
        config: `model.path` may also be a checkpoint's or a run's folder.
        tasks: how many are used, at most.
        every: whether sources that the method does not name are probed as well.
        run: whose recorded rollouts are used in place of expert and random play.

    Raises:
        RunError: nothing can be probed, or it has been.
    """
    name, model = named_model(config.model.path)
    folder = Path(config.out) / "probe" / name.replace("/", "-") / (Path(config.method).stem or "none")
    if folder.exists():
        raise RunError(f"{folder} already holds a probe. Rename or delete it, or set another `out`")
    if not (wanted := feedbacks(config, every)):
        raise RunError("the method has no feedback to probe: choose another one, or --every-source")
    if config.env.served_model is not None:
        raise RunError(
            f"env.name={config.env.name} asks a model that a run serves, and a probe serves none: set "
            "another one (TauBench: env.user.source=scripted or endpoint)"
        )
    with View() as view, storing(Path(config.out)), recorded_judge(config, run or Path(config.out)) as judge:
        config = whole(config, model)
        renderer = load_renderer(str(model), config)
        if run is not None:
            check_tokens(run, model, renderer, config)
            played, left, origin = recorded_groups(run, tasks)
        else:
            played, left, origin = await _play(config, renderer, tasks, view)
        if not played:
            raise RunError(f"there is no pair of a better and a worse action: {first_reason(left)}")
        wanted, dropped = with_states(wanted, played)
        view.phase(f"loading {name}")
        scorer = LocalScorer(TeacherScorer(str(model), config, config.temperatures["teacher"]))
        reader = Reader(config, renderer, scorer, wanted, judge)
        rows, notes = await read_pairs(reader, played, view)
        found = [probed(feedback.summary, rows) for feedback in wanted]
        result = Result(name, config.env.name, config.method, origin, found, rows, left, dropped + notes)
        folder.mkdir(parents=True)
        write_result(result, folder)
        (folder / CONFIG).write_text(render(config))
        view.show(result_table(result))
        for line in (
            *lines_below(result),
            f"also in {folder}: probe.png, probe.json, pairs.jsonl, table.txt",
        ):
            view.show(line)


def settings_of(run: Path, overrides: Sequence[str]) -> Config:
    """The settings of a run, with its newest checkpoint as the model unless `model.path` is given.

    Raises:
        RunError: they cannot be read, or contradict each other.
    """
    moved = [f"out={json.dumps(str(run))}"]  # the folder may have been moved since
    if newest := find_model(run):
        moved.append(f"model.path={json.dumps(str(newest))}")
    folder = RunFolder(run)
    config = read_settings(folder, [*moved, *overrides])
    return replace(config, method=config.method or folder.config().get("method", ""))


def named_model(path: str) -> tuple[str, Path]:
    """A short name of a model, and its folder.

    Raises:
        ModelMissing, ModelUnfit: there is none, or it is no agent's.
    """
    folder = Path(path).expanduser()
    model = (find_model(folder) if folder.is_dir() else None) or resolve(path)
    checkpoint = checkpoint_of(model)
    name = f"{checkpoint.parents[1].name}/{checkpoint.name}" if checkpoint else folder.name
    return name, model


def whole(config: Config, model: Path) -> Config:
    """The settings of a probe: without an adapter, which a checkpoint has merged into float32 weights."""
    merged = (model / ADAPTER).is_dir()
    settings = replace(config.model, dtype="float32" if merged else config.model.dtype)
    return settled(replace(config, model=settings, learner=replace(config.learner, lora=Lora())), None)


def check_tokens(run: Path, model: Path, renderer: Renderer, config: Config) -> None:
    """Check that the token ids that a run recorded mean the same to a model.

    Raises:
        RunError: they belong to another tokenizer or chat template, or the run's model is gone.
    """
    try:
        own = find_model(run) or resolve(RunFolder(run).config()["model"]["path"])
    except ModelMissing as error:
        raise RunError(f"the rollouts in {run} are token ids of a model that is gone: {error}") from error
    if own == model:
        return
    theirs = load_renderer(str(own), config)
    same = np.array_equal(theirs.close_ids, renderer.close_ids)
    if not same or theirs.vocabulary != renderer.vocabulary:
        raise RunError(
            f"the rollouts in {run} are token ids of {own}, which have another meaning in {model}: set "
            "model.path to a model with the run's tokenizer and chat template, or name a recipe, not --run"
        )


def with_states(wanted: Sequence[Feedback], played: Sequence[Played]) -> tuple[list[Feedback], list[str]]:
    """The feedback that can be probed, and a note on what is left out: anchors need a `state_key`.

    Raises:
        RunError: none is left.
    """
    if has_states(played):
        return [*wanted], []
    kept = [one for one in wanted if one.granularity != "anchor"]
    left = [one.summary for one in wanted if one.granularity == "anchor"]
    why = "observations of this environment have no state_key, which feedback.granularity=anchor needs"
    if not kept:
        raise RunError(f"nothing to probe: {why}. Set feedback.granularity=step, or add --every-source")
    return kept, [f"left out: {'; '.join(left)} ({why})"] if left else []


async def _play(config: Config, renderer: Renderer, tasks: int, view: View) -> Found:
    """Expert and random play on the first training tasks."""
    view.phase("listing tasks")
    family = make_family(config.env)
    chosen = family.manifest().train[:tasks]
    view.say(f"playing {len(chosen)} tasks of {config.env.name}: reference solutions, and branches from them")
    view.phase("playing", len(chosen))
    played, left = await play_tasks(
        family, config, renderer, chosen, lambda done: view.advance(done, len(chosen))
    )
    pairs = sum(len(one.pairs) for one in played)
    view.say(f"{pairs} pairs on {len(played)} tasks")
    return played, left, f"expert and random play on {len(chosen)} training tasks"


def recorded_groups(path: Path, tasks: int) -> Found:
    """The recorded groups of a run that have pairs, from its last step back, until there are enough tasks.

    Raises:
        RunError: a group cannot be read.
    """
    run, played, left = RunFolder(path), list[Played](), dict[str, str]()
    for stage in reversed([one for one in run.steps() if one.training]):
        for row in run.groups(stage.key):
            try:
                group = read_group(row).group
            except GroupError as error:
                raise RunError(f"the groups of {stage.name} in {path} cannot be read: {error}") from error
            if pairs := recorded_pairs(group):
                played.append(Played(group, tuple(pairs)))
            else:
                left[group.task.id] = "no state in which actions with different outcomes were taken"
            if len({one.group.task.id for one in played}) == tasks:
                break
        else:
            continue
        break
    kept = {one.group.task.id for one in played}
    origin = f"rollouts of {path.name} on {len(kept)} tasks"
    return played, {task: why for task, why in left.items() if task not in kept}, origin


def first_reason(left: Mapping[str, str]) -> str:
    """Why the first task gave none."""
    return next((f"task {task}: {why}" for task, why in left.items()), "no task, or no recorded group")


async def read_pairs(reader: Reader, played: list[Played], view: View) -> tuple[list[ProbeRow], list[str]]:
    """The scores of all pairs, and what went wrong on the way."""
    view.phase("gathering hints", len(played))
    hinted = []
    for number, one in enumerate(played, start=1):
        hinted.append(await reader.hints(one))
        view.advance(number, len(played))
    view.say(f"scoring with {len(reader.feedbacks)} kinds of feedback")
    view.phase("scoring", len(played))
    rows: list[ProbeRow] = []
    for place in range(len(hinted)):
        rows += await reader.rows(hinted, place)
        view.advance(place + 1, len(hinted))
        if (place + 1) % max(1, len(hinted) // 8) == 0:
            view.say(f"scored {place + 1} of {len(hinted)} tasks")
    lost = sum(len(texts) // 2 for one in hinted for texts in one.texts) - len(rows)
    notes = [f"{lost} pairs with hints did not fit the teacher's context"] if lost else []
    failures = [failure.message for one in hinted for failure in one.failures]
    if failures:
        notes.append(f"{len(failures)} questions to the judge failed, such as: {failures[0]}")
    return rows, notes
