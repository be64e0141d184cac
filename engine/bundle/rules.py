"""What turns candidates into a slate: an operator's rules, of a bundle or of the section [pipeline].

A request may bring rules of its own; what it leaves open is taken from [pipeline], then from the bundle.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

from recserve.errors import ConfigError, RecserveError, nearest

SCORE, MMR, DPP, CALIBRATED = "score", "mmr", "dpp", "calibrated"
METHODS = (SCORE, MMR, DPP, CALIBRATED)
# What candidates may come from.
SOURCES = ("model", "similar", "segment", "popularity", "new", "explore", "query_text")
MAX_CANDIDATES = 10_000
MAX_BOOSTS = 32
MAX_PINS = 100
MAX_CAPS = 8
MAX_IMPRESSIONS, MAX_HOURS = 1000, 720
# What a kernel adds to scores.
MAX_WEIGHT = 1e6


@dataclass(frozen=True, slots=True)
class Pin:
    """Puts an item at a 1-based rank, unless a filter, a cap or an exclusion by name forbids it."""

    item_id: str
    rank: int

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}


@dataclass(frozen=True, slots=True)
class Boost:
    """Adds ``weight`` to the score of the items that ``filter`` holds for; a negative one buries them."""

    filter: str
    weight: float

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}


@dataclass(frozen=True, slots=True)
class Frequency:
    """Leaves out the items that the user was shown so often within so many hours."""

    impressions: int
    hours: int

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How a slate is made from the candidates. None, and empty: nothing is said.

    ``caps``: by attribute, how many items of one of its values (a brand, a category) a slate may have.
    ``min_score``: items that the model scores lower are left out; says nothing about popularity answers.
    ``rerank``: "score", "mmr", "dpp" or "calibrated", by what the slate is chosen from the candidates.
    ``diversity``: its weight under the last three, 0 (the scores alone) to 1. ``calibrate``: the attribute
    (genres) whose values the slate has in the proportions of the user's history. ``novelty``: the weight of
    being little known against the score, 0 to 1. ``candidates``: how many retrieved items a slate is chosen
    from. ``quotas``: how the candidates are shared between sources, relative: {"model": 8, "new": 2}.
    ``serendipity``: the weight of being unlike everything in the user's history against the score; with
    novelty at most 1. ``exposure``: the attribute (seller) whose values get places in proportion to how
    relevant their candidates are together, under "calibrated". ``frequency``: leaves out what the user was
    shown too often, by the impressions that were recorded.
    """

    pins: Sequence[Pin] = ()
    boosts: Sequence[Boost] = ()
    caps: Mapping[str, int] = field(default_factory=dict)
    min_score: float | None = None
    rerank: str = ""
    diversity: float | None = None
    novelty: float | None = None
    candidates: int | None = None
    calibrate: str = ""
    quotas: Mapping[str, float] = field(default_factory=dict)
    serendipity: float | None = None
    exposure: str = ""
    frequency: Frequency | None = None

    def over(self, other: "Rules") -> Self:
        """Returns these rules with those of ``other`` where these say nothing."""
        said: dict[str, Any] = {}
        for name in self.__dataclass_fields__:
            if _is_open(getattr(self, name)) and not _is_open(value := getattr(other, name, None)):
                said[name] = value
        return replace(self, **said) if said else self


NOTHING = Rules()


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineConfig(Rules):
    """Rules that hold for every request; a stage that nobody asks for does not run.

    ``filter``: which items may be shown at all (availability); a request's own filter comes on top of it.
    """

    pins: list[Pin] = field(default_factory=list)
    boosts: list[Boost] = field(default_factory=list)
    caps: dict[str, int] = field(default_factory=dict)
    quotas: dict[str, float] = field(default_factory=dict)
    filter: str = ""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        """Raises :class:`ConfigError` naming the first value that is out of its range."""
        check_rules(self, "pipeline", ConfigError)


def _is_open(value: Any) -> bool:
    return not value and not isinstance(value, int | float)


def check_rules(rules: Rules, name: str, error: type[RecserveError]) -> None:
    """Raises ``error`` naming the first value out of its range; attributes are not looked up here."""
    if rules.rerank not in ("", *METHODS):
        raise error(f"{name}.rerank", found=rules.rerank, expected=f"one of {', '.join(METHODS)}")
    for attribute in ("calibrate", "exposure"):
        if not isinstance(getattr(rules, attribute), str):
            found = getattr(rules, attribute)
            raise error(f"{name}.{attribute}", found=found, expected="the name of an attribute")
    if rules.calibrate and rules.exposure:
        raise error(f"{name}.exposure", found=rules.exposure, expected="empty where calibrate is given")
    for weight in ("diversity", "novelty", "serendipity"):
        _check_number(f"{name}.{weight}", getattr(rules, weight), 0.0, 1.0, error)
    if (both := (rules.novelty or 0.0) + (rules.serendipity or 0.0)) > 1:
        raise error(f"{name}.serendipity", found=both, expected="at most 1 together with novelty")
    _check_number(f"{name}.min_score", rules.min_score, -MAX_WEIGHT, MAX_WEIGHT, error)
    if rules.candidates is not None:
        _check_whole(f"{name}.candidates", rules.candidates, MAX_CANDIDATES, error)
    for kind, limit in (("pins", MAX_PINS), ("boosts", MAX_BOOSTS), ("caps", MAX_CAPS)):
        if len(getattr(rules, kind)) > limit:
            found = f"{len(getattr(rules, kind))} long"
            raise error(f"{name}.{kind}", found=found, expected=f"at most {limit}")
    for i, boost in enumerate(rules.boosts):
        if not isinstance(boost.filter, str):
            raise error(f"{name}.boosts[{i}].filter", found=boost.filter, expected="a string")
        _check_number(f"{name}.boosts[{i}].weight", boost.weight, -MAX_WEIGHT, MAX_WEIGHT, error)
    for attribute, limit in rules.caps.items():
        _check_whole(f"{name}.caps.{attribute}", limit, MAX_CANDIDATES, error)
    for i, pin in enumerate(rules.pins):
        _check_whole(f"{name}.pins[{i}].rank", pin.rank, MAX_CANDIDATES, error)
    if rules.frequency is not None:
        if not isinstance(rules.frequency, Frequency):
            raise error(f"{name}.frequency", found=rules.frequency, expected="impressions and hours")
        _check_whole(f"{name}.frequency.impressions", rules.frequency.impressions, MAX_IMPRESSIONS, error)
        _check_whole(f"{name}.frequency.hours", rules.frequency.hours, MAX_HOURS, error)
    for source, quota in rules.quotas.items():
        if source not in SOURCES:
            cure = nearest(source, SOURCES)
            raise error(f"{name}.quotas", found=source, expected=f"one of {', '.join(SOURCES)}", cure=cure)
        _check_number(f"{name}.quotas.{source}", quota, 0.0, MAX_WEIGHT, error)
    if rules.quotas and not any(rules.quotas.values()):
        raise error(f"{name}.quotas", found="all 0", expected="one above 0")
    for attribute in ("rank", "item_id"):
        values = [getattr(pin, attribute) for pin in rules.pins]
        if len(set(values)) < len(values):
            raise error(f"{name}.pins", found=f"with one {attribute} twice", expected="each once")


def _check_number(name: str, value: Any, low: float, high: float, error: type[RecserveError]) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if value is not None and not (is_number and math.isfinite(value) and low <= value <= high):
        raise error(name, found=value, expected=f"{low:g} to {high:g}")


def _check_whole(name: str, value: Any, high: int, error: type[RecserveError]) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= high:
        raise error(name, found=value, expected=f"a whole number from 1 to {high}")
