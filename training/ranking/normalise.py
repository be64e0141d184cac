"""Numbers on one scale: fitted on training values, stored as a few parameters, the same ever after."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recserve.errors import DataError, InvalidRequest

METHODS = ("min-max", "z-score", "log", "quantile")
# Quantiles that the quantile scale is drawn through, ends included.
N_QUANTILES = 101


@dataclass(frozen=True, slots=True)
class Normaliser:
    """A fitted scale of one feature.

    min-max: (x − lowest) / (highest − lowest), cut to 0..1. z-score: (x − mean) / standard deviation. log:
    the z-score of ln(1 + x), x below 0 counting as 0. quantile: the share of the training values below x,
    0..1, linear between 101 quantiles. A feature that was the same everywhere becomes 0; a missing value
    (NaN) becomes 0 under each method.
    """

    method: str
    parameters: tuple[float, ...]

    @classmethod
    def fit(cls, values: NDArray[np.float64], method: str) -> "Normaliser":
        """Fits the scale to ``values`` (n,), NaN left out.

        Raises :class:`InvalidRequest` for an unknown method, :class:`DataError` for infinite values.
        """
        if method not in METHODS:
            raise InvalidRequest("normalisation", found=method, expected=f"one of {', '.join(METHODS)}")
        if np.isinf(values).any():
            raise DataError("a numeric feature", found="infinite", expected="finite numbers or none")
        known = values[~np.isnan(values)]
        if not len(known):
            known = np.zeros(1)
        if method == "min-max":
            return cls(method, (float(known.min()), float(known.max())))
        if method == "quantile":
            return cls(method, tuple(np.quantile(known, np.linspace(0, 1, N_QUANTILES)).tolist()))
        if method == "log":
            known = np.log1p(np.maximum(known, 0))
        return cls(method, (float(known.mean()), float(known.std())))

    def apply(self, values: NDArray[np.float64]) -> NDArray[np.float32]:
        """Returns ``values`` (n,) on the scale, float32, without NaN."""
        if self.method == "quantile":
            scaled = _between_quantiles(np.array(self.parameters), values)
        else:
            first, second = self.parameters
            width = second - first if self.method == "min-max" else second
            x = np.log1p(np.maximum(values, 0)) if self.method == "log" else values
            scaled = (x - first) / width if width > 0 else np.zeros_like(values)
            if self.method == "min-max":
                scaled = np.clip(scaled, 0, 1)
        return np.nan_to_num(scaled, nan=0.0).astype(np.float32)


def _between_quantiles(quantiles: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    # Repeated quantiles (many equal values) would make the interpolation depend on their order.
    points, first = np.unique(quantiles, return_index=True)
    if len(points) == 1:
        return np.where(np.isnan(values), np.nan, 0.0)
    return np.interp(values, points, first / (len(quantiles) - 1))
