"""Score the actions of pairs without a hint, with their own, and with another task's.

    without    … observation                                    action
    shown      … observation ┊ hint about this action ┊         action
    other      … observation ┊ one hint of another task ┊       action     the same for both actions of a pair

Hints, contexts and log-probs come from the code that training uses.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch

from hindsight.cluster.local import LocalScorer
from hindsight.cluster.probe.figures import ProbeRow
from hindsight.cluster.probe.pairs import Pair
from hindsight.cluster.probe.play import Played
from hindsight.configs.method import Feedback
from hindsight.configs.registry import FEEDBACK_SOURCES
from hindsight.configs.schema import Config
from hindsight.feedback.combine import Texts
from hindsight.feedback.hints import gather_hints
from hindsight.feedback.judge_client import Ask
from hindsight.learner.signals import TeacherSignal, make_signal
from hindsight.rollout.render import Renderer
from hindsight.rollout.types import Failure, Group, TurnAt
from hindsight.teacher.contexts import ContextLimits, ScoreRequest, build_requests

WITHOUT, SHOWN, OTHER = "without", "shown", "other"
Label = tuple[str, int, TurnAt]  # condition, which feedback, turn


@dataclass(frozen=True)
class Hinted:
    """A task with the hints of each feedback, and what kept some of them from being written."""

    played: Played
    texts: tuple[Texts, ...]
    failures: tuple[Failure, ...] = ()


def feedbacks(config: Config, every: bool) -> list[Feedback]:
    """What is probed: the method's own feedback, and then, if wanted, each source alone that asks no judge.

    Sources that pool are probed per step and per anchor. Those that do not work with the settings, such as
    skills without a file, are left out.
    """
    own = [config.feedback] if config.feedback.on else []
    if not every:
        return own
    base = Feedback(**{item.name: getattr(config.feedback, item.name) for item in fields(Feedback)})
    found = {one.summary: one for one in own}
    for name in FEEDBACK_SOURCES.builtin:
        kind: type[Feedback] = FEEDBACK_SOURCES.settings(name)
        for granularity in ("step", "anchor") if kind.pools else ("step",):
            alone = replace(base, sources=[name], combine="all", granularity=granularity)
            if kind.judged:
                continue
            feedback: Feedback = FEEDBACK_SOURCES.complete(alone)
            if not list(feedback.problems(replace(config, feedback=feedback))):
                found.setdefault(feedback.summary, feedback)
    return list(found.values())


def has_states(played: Sequence[Played]) -> bool:
    """Whether all observations have the `state_key` that anchors need."""
    trajectories = (trajectory for one in played for trajectory in one.group.trajectories)
    return all(turn.observation.state_key for trajectory in trajectories for turn in trajectory.turns)


@dataclass(frozen=True)
class Reader:
    """A model that scores actions as a method's teacher would."""

    config: Config
    renderer: Renderer
    scorer: LocalScorer
    feedbacks: Sequence[Feedback]
    ask: Ask | None = None  # the judge

    @property
    def signal(self) -> TeacherSignal:
        """The method's teacher signal, whose weights may be clipped."""
        return make_signal(self.config.signal)

    async def hints(self, played: Played) -> Hinted:
        """The hints about both actions of each pair; pairs that lack one of them have none."""
        about = sorted({index for pair in played.pairs for index, _ in pair.turns})
        whole = self.config.signal.tokens == "response"
        texts: list[Texts] = []
        failures: tuple[Failure, ...] = ()
        for feedback in self.feedbacks:
            found = await gather_hints(
                played.group, feedback, self.ask, self.renderer.show, whole_turns=whole, about=about
            )
            both = [pair for pair in played.pairs if all(at in found.texts for at in pair.turns)]
            texts.append({at: found.texts[at] for pair in both for at in pair.turns})
            failures += found.failures
        return Hinted(played, tuple(texts), failures)

    async def rows(self, hinted: Sequence[Hinted], place: int) -> list[ProbeRow]:
        """A row for each pair and feedback of the task at `place`, if both actions have a hint that fits.

        Raises:
            BudgetError: a context without a hint exceeds `teacher.batch_tokens`.
        """
        one = hinted[place]
        labels, requests = self._requests(hinted, place)
        group = one.played.group
        sequences = [[sequence.ids for sequence in t.sequences] for t in group.trajectories]
        scored, _ = await self.scorer.score(sequences, requests, f"scoring task {group.task.id}")
        logprobs = {label: found.logprobs for label, found in zip(labels, scored, strict=True)}
        rows = (
            self._row(one, number, pair, logprobs)
            for number in range(len(self.feedbacks))
            for pair in one.played.pairs
        )
        return [row for row in rows if row is not None]

    def _requests(self, hinted: Sequence[Hinted], place: int) -> tuple[list[Label], list[ScoreRequest]]:
        """Everything that is scored of a task, in one list: what contexts share is computed once."""
        one = hinted[place]
        group, pairs = one.played.group, one.played.pairs
        turns = {at for own in one.texts for at in own}
        asked: list[tuple[str, int, Texts]] = [(WITHOUT, 0, dict.fromkeys(sorted(turns), ""))]
        for number, own in enumerate(one.texts):
            other = of_another_task(hinted, place, number)
            asked += [(SHOWN, number, own), (OTHER, number, foreign(pairs, own, other, shift=place))]
        labels: list[Label] = []
        requests: list[ScoreRequest] = []
        for condition, number, texts in asked:
            built = build_requests(
                group,
                texts,
                self.renderer.close_ids,
                self.renderer.encode,
                ContextLimits(self.config.feedback.max_tokens, self.scorer.context),
                self.renderer.second_message() if self.config.feedback.placement == "message" else None,
                self.config.signal.tokens,
            )
            labels += [(condition, number, (request.trajectory, request.turn)) for request in built]
            requests += built
        return labels, list(rooted(group, pairs, requests))

    def _row(
        self, one: Hinted, number: int, pair: Pair, logprobs: Mapping[Label, np.ndarray]
    ) -> ProbeRow | None:
        """The scores of a pair with one feedback; None if a hint is missing or did not fit."""

        def known(condition: str, place: int) -> list[np.ndarray] | None:
            labels = [(condition, place, at) for at in pair.turns]
            return [logprobs[label] for label in labels] if all(map(logprobs.__contains__, labels)) else None

        plain, shown, other = known(WITHOUT, 0), known(SHOWN, number), known(OTHER, number)
        if plain is None or shown is None:
            return None
        group = one.played.group
        actions = [group.trajectories[index].turns[turn].action or "" for index, turn in pair.turns]
        gaps = [own - before for own, before in zip(shown, plain, strict=True)]
        return ProbeRow(
            feedback=self.feedbacks[number].summary,
            task=group.task.id,
            turn=pair.better[1],
            actions=tuple(actions),
            hints=tuple(one.texts[number][at] for at in pair.turns),
            without=means(plain),
            shown=means(shown),
            other=means(other) if other else None,
            clipped=clipped_share(self.signal, gaps),
        )


def means(logprobs: Sequence[np.ndarray]) -> tuple[float, float]:
    """Mean log-prob per token of the better and the worse action."""
    better, worse = (float(one.mean(dtype=np.float64)) for one in logprobs)
    return better, worse


def of_another_task(hinted: Sequence[Hinted], place: int, number: int) -> list[str]:
    """The hints of the next task that has any with this feedback, pair by pair, the better action's first."""
    own = hinted[place].played.group.task.id
    for step in range(1, len(hinted)):
        one = hinted[(place + step) % len(hinted)]
        if one.played.group.task.id != own and one.texts[number]:
            return list(one.texts[number].values())
    return []


def foreign(pairs: Sequence[Pair], own: Texts, other: Sequence[str], shift: int) -> dict[TurnAt, str]:
    """The control's hints: both actions of a pair see the same hint of another task.

    Hints take turns, so that about half of the pairs see the one about a better action.

    Args:
        own: the turns that have a hint. other: hints of another task. shift: which of them comes first.
    """
    found: dict[TurnAt, str] = {}
    for number, pair in enumerate(pairs):
        turns = {at: own[at] for at in pair.turns if at in own}
        one = other[(number + shift) % len(other)] if other else ""
        if one and set(turns.values()) != {one}:  # what both are shown anyway is no control
            found |= dict.fromkeys(turns, one)
    return found


def rooted(group: Group, pairs: Sequence[Pair], requests: Sequence[ScoreRequest]) -> Iterator[ScoreRequest]:
    """The requests, those about a worse action on the better one's sequence where it begins with the same
    context: then a scorer reads it once."""
    partner = {pair.worse: pair.better for pair in pairs}
    for request in requests:
        better = partner.get((request.trajectory, request.turn))
        if better is None:
            yield request
            continue
        turn = group.trajectories[better[0]].turns[better[1]]
        ids = group.trajectories[better[0]].sequences[turn.sequence].ids
        own = group.trajectories[request.trajectory].sequences[request.sequence].ids
        same = np.array_equal(ids[: request.cut], own[: request.cut])
        yield replace(request, trajectory=better[0], sequence=turn.sequence) if same else request


def clipped_share(signal: TeacherSignal, gaps: Sequence[np.ndarray]) -> float | None:
    """Share of tokens whose weight is clipped, if the better action gains and the worse one loses.

    Args:
        gaps: Δ of the tokens of the better and of the worse action.

    Returns:
        None if the signal has no weights of tokens.
    """
    if type(signal).weights is TeacherSignal.weights:
        return None
    signs = np.concatenate([np.full(len(gap), sign) for gap, sign in zip(gaps, (1.0, -1.0), strict=True)])
    weights, raw = signal.weights(torch.from_numpy(signs), torch.from_numpy(np.concatenate(gaps)))
    return float((weights != raw).double().mean())
