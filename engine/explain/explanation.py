"""The nouns of explanations: reasons and contributions of one item."""

from dataclasses import dataclass
from enum import StrEnum

# How much a request wants to be told.
EXPLAIN_NONE, EXPLAIN_FAST, EXPLAIN_EXACT = "none", "fast", "exact"
EXPLAIN_LEVELS = (EXPLAIN_NONE, EXPLAIN_FAST, EXPLAIN_EXACT)

# What contributions are: cosines of item vectors, shares of the score of a fold-in, or what the score loses.
SIMILARITY, SHARE, LEAVE_ONE_OUT = "similarity", "share", "leave_one_out"


class ReasonCode(StrEnum):
    """Why an item is in a slate; a closed list, with a text for each in every file of ``messages``."""

    PINNED = "pinned"
    BOOSTED = "boosted"
    BECAUSE_YOU_HAD = "because_you_had"
    """Items of the history add to the score."""
    SIMILAR_TO = "similar_to"
    """Its vector points the way of items of the history."""
    POPULAR = "popular"
    """An answer without the model: the items that most interactions are with."""
    NEW = "new"
    """Nobody had it yet when the model was trained."""
    MATCHES_TEXT = "matches_text"
    """Its text is like that of the request."""
    FOR_YOU = "for_you"
    """The model's choice, and nothing more can be said."""


# Nothing here is frozen: a slate has a hundred of them, and freezing triples the time that takes.
@dataclass(slots=True)
class Reason:
    """A code, and the items of the user's own history that it is about."""

    code: ReasonCode
    item_ids: tuple[str, ...] = ()


@dataclass(slots=True)
class Contribution:
    """What one item of the user's own history says for an item of the slate (or, below 0, against it)."""

    item_id: str
    value: float


@dataclass(slots=True)
class Explanation:
    """Why an item is in a slate: at least one reason, and contributions, largest first.

    ``method``: what the contributions are, "share" or "leave_one_out", with which ``base`` + their sum is
    the score, or "similarity", cosines, which are no parts of it; "" where there are none. ``base``: the part
    of the score that no contribution has: boosts, older items, and what items say only together.
    """

    reasons: tuple[Reason, ...]
    contributions: tuple[Contribution, ...] = ()
    method: str = ""
    base: float = 0.0
