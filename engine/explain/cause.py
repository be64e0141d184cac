"""The nouns of the question why an item is not in a slate."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Cause(StrEnum):
    """What kept an item out of a slate: the first stage, or rule, that did."""

    IN_SLATE = "in_slate"
    """Nothing: it is there. Numbers: ``rank``, ``score``."""
    UNKNOWN = "unknown"
    """The catalogue does not have it."""
    EXCLUDED = "excluded"
    """The request excludes it by name, or it was shown on an earlier page."""
    GONE = "gone"
    """It was taken out of the catalogue."""
    SEEN = "seen"
    """The user had it."""
    FREQUENCY = "frequency"
    """The user was shown it too often."""
    FILTER = "filter"
    """The request's filter, or the operator's; ``detail`` says which."""
    RETRIEVAL = "retrieval"
    """It is no candidate: ``rank`` of all items that may come back, ``n_candidates`` that were taken."""
    RANK = "rank"
    """A candidate, below the end of the slate: ``rank``, ``score``, and the ``last_score`` that is in."""
    MIN_SCORE = "min_score"
    """Its ``score`` is below the ``min_score`` of the rules."""
    CAP = "cap"
    """The slate has as many items of one of its values as a cap allows (``limit``); ``detail`` says which."""
    DIVERSITY = "diversity"
    """The slate is chosen to be diverse; by its score it would be in."""
    NOVELTY = "novelty"
    """The slate prefers little known items; by its score it would be in."""
    PINS = "pins"
    """Pinned items have the places."""
    RULES = "rules"
    """Several of these rules together; without any one alone it would still be out."""


@dataclass(frozen=True, slots=True)
class WhyNot:
    """What kept ``item_id`` out of the slate of a request, with the numbers of that stage.

    ``detail``: the filter or cap by name. ``rank``: 1-based.
    """

    item_id: str
    cause: Cause
    bundle_version: str
    detail: str = ""
    numbers: Mapping[str, float] = field(default_factory=dict)
