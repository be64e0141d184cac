"""Calibration: from a model's logit to a probability that comes true as often as it says.

Fitted on held-out examples, by Platt's sigmoid (Platt 1999, with his smoothed targets) or by isotonic
regression (pool adjacent violators; Zadrozny & Elkan 2002).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recserve.errors import InvalidRequest
from recserve.training.ranking.metrics import logloss

METHODS = ("auto", "platt", "isotonic", "none")
NEWTON_STEPS = 50
# Beyond the held-out logits a probability goes on towards 0 and 1 over this distance, so that no two tie.
TAIL = 5.0
# Fewest examples behind one step of the isotonic curve.
MIN_BLOCK = 50

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True)
class Calibration:
    """logit → probability. platt: σ(x[0]·logit + y[0]); isotonic: linear through the points (x, y)."""

    method: str
    x: tuple[float, ...]
    y: tuple[float, ...]

    def apply(self, logits: Floats) -> NDArray[np.float64]:
        """Returns probabilities in the shape of ``logits``, never falling where logits rise."""
        values = logits.astype(np.float64)
        if self.method == "isotonic":
            return np.interp(values, self.x, self.y)
        return sigmoid(self.x[0] * values + self.y[0])


IDENTITY = Calibration("platt", (1.0,), (0.0,))


def sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns 1 / (1 + e^−x) without overflow."""
    return 0.5 * (1 + np.tanh(0.5 * x))


def fit_calibration(logits: Floats, clicks: Floats, method: str = "auto") -> Calibration:
    """Fits ``method`` to held-out ``logits`` (n,) and ``clicks`` (n,), in their order in time.

    auto: the method that, fitted on the first half, has the lower logloss on the second. Labels of one kind
    leave nothing to fit: the logits stay as they are.
    """
    if method not in METHODS:
        raise InvalidRequest("calibration", found=method, expected=f"one of {', '.join(METHODS)}")
    if method == "none" or not 0 < np.count_nonzero(clicks) < len(clicks):
        return IDENTITY
    fits = {"platt": fit_platt, "isotonic": fit_isotonic}
    if method != "auto":
        return fits[method](logits, clicks)
    half = len(logits) // 2
    if not 0 < np.count_nonzero(clicks[:half]) < half:
        return fit_platt(logits, clicks)
    losses = {
        name: logloss(fit(logits[:half], clicks[:half]).apply(logits[half:]), clicks[half:])
        for name, fit in fits.items()
    }
    return fits[min(losses, key=lambda name: losses[name])](logits, clicks)


def fit_platt(logits: Floats, clicks: Floats) -> Calibration:
    """Returns the sigmoid of highest likelihood under Platt's targets, by Newton steps."""
    x = logits.astype(np.float64)
    n_clicks = np.count_nonzero(clicks)
    targets = np.where(clicks, (n_clicks + 1) / (n_clicks + 2), 1 / (len(x) - n_clicks + 2))
    design = np.stack([x, np.ones_like(x)], axis=1)
    weights = np.array([1.0, 0.0])
    for _ in range(NEWTON_STEPS):
        p = sigmoid(design @ weights)
        gradient = design.T @ (p - targets)
        hessian = (design * (p * (1 - p))[:, None]).T @ design + 1e-9 * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        weights -= np.clip(step, -1.0, 1.0)
        if np.abs(step).max() < 1e-10:
            break
    # A model that ranks backwards is not turned round: order is the model's business.
    return Calibration("platt", (max(float(weights[0]), 1e-6),), (float(weights[1]),))


def fit_isotonic(logits: Floats, clicks: Floats) -> Calibration:
    """Returns the never falling curve of least squares, through the centres of its steps."""
    order = np.argsort(logits, kind="stable")
    x, y = logits[order].astype(np.float64), clicks[order].astype(np.float64)
    # Sums over chunks first: a step behind which there are few examples says little.
    starts = np.arange(0, max(len(x) - MIN_BLOCK + 1, 1), MIN_BLOCK)
    counts = np.diff(np.append(starts, len(x))).astype(np.float64)
    blocks: list[list[float]] = []
    for n, sum_x, sum_y in zip(counts, np.add.reduceat(x, starts), np.add.reduceat(y, starts), strict=True):
        blocks.append([n, sum_x, sum_y])
        while len(blocks) > 1 and blocks[-2][2] * blocks[-1][0] >= blocks[-1][2] * blocks[-2][0]:
            last = blocks.pop()
            blocks[-1] = [a + b for a, b in zip(blocks[-1], last, strict=True)]
    centres = np.array([sum_x / n for n, sum_x, _ in blocks])
    # One example of each kind more than seen: nothing is certain.
    rates = np.array([(sum_y + 1 / len(blocks)) / (n + 2 / len(blocks)) for n, _, sum_y in blocks])
    rates = np.maximum.accumulate(rates)
    xs = np.concatenate([[x[0] - TAIL], centres, [x[-1] + TAIL]])
    ys = np.concatenate([[rates[0] / 2], rates, [(1 + rates[-1]) / 2]])
    return Calibration("isotonic", tuple(xs.tolist()), tuple(ys.tolist()))
