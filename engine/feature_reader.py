"""From the texts of a request's context to the indices of the features that a bundle knows."""

import json
from collections.abc import Mapping, Sequence

import numpy as np

from recserve.engine.bundle import Bundle
from recserve.engine.bundle.request_features import CATEGORY, HOUR, MOMENTS, WEEKDAY, RequestFeature
from recserve.errors import BundleInvalid, BundleReason, InvalidRequest

SECONDS_PER_HOUR, HOURS_PER_DAY, DAYS_PER_WEEK = 3600, 24, 7
# 1970-01-01 was a Thursday; weekday 0 is Monday.
EPOCH_WEEKDAY = 3


class FeatureReader:
    """Numbers the values of ``features``; safe to call from several threads.

    Raises :class:`BundleInvalid` at construction for a vocabulary that is none.
    """

    def __init__(self, bundle: Bundle, features: Sequence[RequestFeature]) -> None:
        self.features = tuple(features)
        self._codes = {
            feature.name: _open_vocabulary(bundle, feature.vocabulary)
            for feature in features
            if feature.kind == CATEGORY
        }

    def n_values(self, feature: RequestFeature) -> int:
        """Returns the largest index of a categorical, numeric or momentary feature."""
        if feature.kind == CATEGORY:
            return len(self._codes[feature.name])
        return MOMENTS.get(feature.kind, len(feature.edges) + 1)

    def index(self, feature: RequestFeature, text: str) -> int:
        """Returns the index of a value, 0 for an unknown one.

        Raises :class:`InvalidRequest` for a number or an hour that is none.
        """
        if feature.kind == CATEGORY:
            return self._codes[feature.name].get(text, 0)
        try:
            if feature.kind in MOMENTS:
                if not 0 <= (number := int(text)) < MOMENTS[feature.kind]:
                    raise ValueError
                return 1 + number
            if not np.isfinite(value := float(text)):
                raise ValueError
            return 1 + int(np.searchsorted(feature.edges, value, side="right"))
        except ValueError:
            expected = f"0 to {MOMENTS[feature.kind] - 1}" if feature.kind in MOMENTS else "a number"
            raise InvalidRequest(f"context[{feature.name}]", found=text, expected=expected) from None

    def indices(self, context: Mapping[str, str], now: int) -> list[int]:
        """Returns the index of each feature by ``context``, else by the UTC clock, else 0.

        ``now``: seconds since the epoch. Raises as :meth:`index`.
        """
        hours = now // SECONDS_PER_HOUR
        clock = {
            HOUR: 1 + hours % HOURS_PER_DAY,
            WEEKDAY: 1 + (hours // HOURS_PER_DAY + EPOCH_WEEKDAY) % DAYS_PER_WEEK,
        }
        return [
            self.index(feature, context[feature.name])
            if feature.name in context
            else clock.get(feature.kind, 0)
            for feature in self.features
        ]


def _open_vocabulary(bundle: Bundle, name: str) -> dict[str, int]:
    try:
        values = json.loads(bundle.read(name))
    except ValueError as error:
        raise BundleInvalid(
            f"file {name}",
            found="not JSON",
            expected="a list of strings",
            reason=BundleReason.CONTENT_MALFORMED,
        ) from error
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise BundleInvalid(
            f"file {name}",
            found="something else",
            expected="a list of strings",
            reason=BundleReason.CONTENT_MALFORMED,
        )
    return {value: i for i, value in enumerate(values, start=1)}
