"""How the hints of several sources become one: the rules of SERL's modes (arXiv 2605.19447). Pure.

step     all     every source has something to show about the turn, and all is shown
         first   the first source that has
anchor          the actions tried in the state, what the sources say of some tries of each, the sibling if any
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

from hindsight.configs.method import Combination
from hindsight.feedback.anchors import anchors
from hindsight.feedback.pool import pooled_actions, pooled_feedback
from hindsight.feedback.source import FeedbackSource, Pooled, PooledSource
from hindsight.feedback.sources import Immediate, Sibling
from hindsight.feedback.transcript import Style
from hindsight.rollout.types import Group, TurnAt

Texts = Mapping[TurnAt, str]  # by (trajectory, turn); turns without a text are absent


def source_texts(
    group: Group, source: FeedbackSource, style: Style, about: Collection[int]
) -> dict[TurnAt, str]:
    """Return the texts of a source that asks no judge.

    Args:
        about: the trajectories that get hints.
    """
    found = {at: source.hint(group, at, style) for at in _turns(group, about)}
    return {at: text for at, text in found.items() if text is not None}


def combined(
    group: Group, parts: Sequence[Texts], combine: Combination, about: Collection[int]
) -> dict[TurnAt, str]:
    """Combine the texts of the sources, in their order, to the hints of turns.

    Args:
        combine: "all" or "first", as `feedback.combine`.
    """
    found = {}
    for at in _turns(group, about):
        shown = [part[at] for part in parts if at in part]
        if combine == "first":
            shown = shown[:1]
        elif len(shown) < len(parts):
            shown = []
        if shown:
            found[at] = "\n\n".join(shown)
    return found


def lacking(
    group: Group, parts: Sequence[Texts | None], place: int, combine: Combination, about: Collection[int]
) -> list[int]:
    """Return the trajectories that the source at `place` can give a hint, in view of what others have.

    Args:
        parts: as for `combined`; None for a source that has not been asked.
    """
    if combine == "first":
        known = [part for part in parts[:place] if part is not None]
        open_turns = (at for at in _turns(group, about) if not any(at in part for part in known))
    else:
        known = [part for part in parts if part is not None]
        open_turns = (at for at in _turns(group, about) if all(at in part for part in known))
    return sorted({index for index, _ in open_turns})


def anchor_texts(
    group: Group, sources: Sequence[FeedbackSource], style: Style, about: Collection[int]
) -> dict[TurnAt, str]:
    """Return the hint of each turn by its anchor.

    Immediate feedback alone is a line for each distinct (action, feedback). Otherwise the actions tried are
    shown in any case; a source that says nothing takes nothing away. With `feedback.combine=first`, only the
    first source that has something to show follows them.

    Raises:
        AnchorError: an observation has no `state_key`.
    """
    found: dict[TurnAt, str] = {}
    assert isinstance(style.feedback, Pooled), "the configuration is checked for sources that cannot pool"
    for members in anchors(group, style.feedback.similarity):
        if len(sources) == 1 and isinstance(sources[0], Immediate):
            alone = pooled_feedback(group, members)
            found |= dict.fromkeys(members, alone) if alone else {}
            continue
        tried: dict[tuple[PooledSource, ...], str | None] = {}
        for at in members:
            shown = _shown(group, members, at, sources, style)
            details = tuple(source for source in shown if isinstance(source, PooledSource))
            if details not in tried:
                tried[details] = pooled_actions(group, members, details, style)
            others = (source.hint(group, at, style) for source in shown if isinstance(source, Sibling))
            if parts := [part for part in (tried[details], *others) if part]:
                found[at] = "\n\n".join(parts)
    return {at: found[at] for at in _turns(group, about) if at in found}


def _shown(
    group: Group, members: Sequence[TurnAt], at: TurnAt, sources: Sequence[FeedbackSource], style: Style
) -> Sequence[FeedbackSource]:
    """Return the sources whose texts follow the actions tried, for one turn of an anchor."""
    if style.feedback.combine == "all":
        return sources

    def shows(source: FeedbackSource) -> bool:
        of = [at] if isinstance(source, Sibling) else members
        return any(source.hint(group, one, style) for one in of)

    return [source for source in sources if shows(source)][:1]


def _turns(group: Group, about: Collection[int]) -> Iterator[TurnAt]:
    for index in about:
        for number in range(len(group.trajectories[index].turns)):
            yield index, number
