"""Popularity by segment, as the manifest describes it: attributes of a request, a list of items per value."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from recserve.engine.bundle.request_features import CATEGORY, CONTEXT_KINDS, RequestFeature
from recserve.errors import BundleInvalid, BundleReason

_wrong_field = partial(BundleInvalid, reason=BundleReason.MANIFEST_FIELD)


@dataclass(frozen=True, slots=True)
class SegmentsEntry:
    """What the users of each segment (a country, an age, an hour) take, the best of each.

    ``items`` int32 and ``shares`` float32: files of arrays (n_segments, length), a row per value of each
    feature, feature after feature, without the unknown value: items by descending share of the segment's
    interactions, −1 and 0 beyond the end. A row without items is a segment of too few users.
    """

    features: list[RequestFeature]
    items: str
    shares: str
    length: int

    def check(self, files: Mapping[str, object]) -> None:
        """Raises :class:`BundleInvalid` naming the first wrong field; ``files``: those of the manifest."""
        vocabularies = [feature.vocabulary for feature in self.features if feature.kind == CATEGORY]
        for path in (self.items, self.shares, *vocabularies):
            if path not in files:
                raise _wrong_field(
                    "a file of the segments", found=path or "not named", expected="one listed in files"
                )
        names = [feature.name for feature in self.features]
        if not names or len(set(names)) != len(names):
            raise _wrong_field("features of the segments", found=names, expected="distinct names")
        for feature in self.features:
            feature.check(CONTEXT_KINDS)
        if self.length < 1:
            raise _wrong_field("length of the segments", found=self.length, expected="1 or more")
