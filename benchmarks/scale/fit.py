"""Growth in one number: the exponent b of cost = a · size^b, by least squares between logarithms."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Student's t, 97.5 %, by degrees of freedom from 1 on; beyond the last the normal distribution will do.
T_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
NORMAL_QUANTILE = 1.96
MIN_POINTS = 2


@dataclass(frozen=True, slots=True)
class PowerLaw:
    """``factor`` · size^``exponent``; low and high: the 95 % interval of the exponent.

    ``last``: the exponent between the two largest sizes, where a fixed cost has the least part.

    The interval is that of ordinary least squares: a curve that is no power law widens it as noise does.
    Two points fit exactly and have none. ``r_squared``: share of the variance of the logarithms explained.
    """

    exponent: float
    factor: float
    low: float | None
    high: float | None
    r_squared: float
    last: float


def fit_power_law(sizes: Sequence[float], costs: Sequence[float]) -> PowerLaw | None:
    """Returns the power law nearest to the points, whose sizes rise; None for fewer than two points."""
    if len(sizes) < MIN_POINTS:
        return None
    x, y = np.log(np.asarray(sizes, np.float64)), np.log(np.asarray(costs, np.float64))
    exponent, offset = np.polyfit(x, y, 1).tolist()
    left = y - (offset + exponent * x)
    last = float((y[-1] - y[-2]) / (x[-1] - x[-2]))
    total = float(((y - y.mean()) ** 2).sum())
    r_squared = 1 - float(left @ left) / total if total else 1.0
    freedom = len(x) - 2
    if freedom == 0:
        return PowerLaw(exponent, float(np.exp(offset)), None, None, r_squared, last)
    t = T_QUANTILES[freedom - 1] if freedom <= len(T_QUANTILES) else NORMAL_QUANTILE
    doubt = t * float(np.sqrt(left @ left / freedom / ((x - x.mean()) ** 2).sum()))
    return PowerLaw(exponent, float(np.exp(offset)), exponent - doubt, exponent + doubt, r_squared, last)


def cost_at(size: float, sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Returns the cost at ``size``: between measured points along a line of the logarithms.

    Below the smallest the cost stays what it was there; above the largest it grows in proportion.
    ``sizes`` rise.
    """
    if size > sizes[-1]:
        return costs[-1] * size / sizes[-1]
    return float(np.exp(np.interp(np.log(size), np.log(sizes), np.log(costs))))
