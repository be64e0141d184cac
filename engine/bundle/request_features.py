"""What is known of a request besides its history, as a ranker and popularity by segment number it."""

from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise

from recserve.errors import BundleInvalid, BundleReason

_wrong_field = partial(BundleInvalid, reason=BundleReason.MANIFEST_FIELD)

# What a feature is: a user's row, one of a vocabulary, a number in ranges, or told by the moment (UTC).
ID, CATEGORY, NUMBER, HOUR, WEEKDAY = "id", "category", "number", "hour", "weekday"
USER_KINDS = (ID, CATEGORY, NUMBER)
CONTEXT_KINDS = (HOUR, WEEKDAY, CATEGORY, NUMBER)
MOMENTS = {HOUR: 24, WEEKDAY: 7}


@dataclass(frozen=True, slots=True)
class RequestFeature:
    """One attribute of a user or the moment; its index 0 is unknown.

    ``kind`` id: 1 + the row of the user. category: 1 + the place in ``vocabulary``, a file of a JSON list
    of strings. number: 1 + how many of the ascending ``edges`` are at or below it. hour: 1 + 0..23. weekday:
    1 + 0..6, Monday first.
    """

    name: str
    kind: str
    vocabulary: str = ""
    edges: list[float] = field(default_factory=list)

    def check(self, kinds: tuple[str, ...]) -> None:
        """Raises :class:`BundleInvalid` unless it is of one of ``kinds`` and its edges ascend."""
        if self.kind not in kinds:
            raise _wrong_field(
                f"kind of feature {self.name}", found=self.kind, expected=f"one of {', '.join(kinds)}"
            )
        if any(a >= b for a, b in pairwise(self.edges)):
            raise _wrong_field(f"edges of feature {self.name}", found=self.edges, expected="ascending")
