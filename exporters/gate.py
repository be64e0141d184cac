"""The gate: a form of the model is served only if it is still good, and only if it is worth having.

Good: with 95 % confidence it loses at most the budget of NDCG@10 against fp32 on the same held-out users.
Worth having: it is smaller, or faster at one of the batch sizes. The figures of all forms, refused ones too,
go into the manifest.
"""

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from recserve.errors import InvalidRequest

N_BOOTSTRAP = 2000
# Closer than this, two sizes or two times are the same: timings of one graph vary that much.
MARGIN = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class GateBudget:
    """What a form may cost."""

    max_loss: float = 0.01
    """Largest upper bound of the loss of NDCG@10, relative to fp32's."""

    def __post_init__(self) -> None:
        if not 0 <= self.max_loss < 1:
            raise InvalidRequest("max_loss", found=self.max_loss, expected="0 to below 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The figures of one form on the held-out users and on this machine, and of fp32 beside it.

    ``ndcg_loss`` is relative (0.01: one per cent of fp32's NDCG@10 is lost; negative: gained), with its
    95 % interval from resampling users in pairs. ``top10_overlap``: mean share of fp32's ten items that
    are among this form's. ``size_bytes``: graph and item table.
    ``resident_bytes``: what loading and running it adds to a fresh process.
    Times are of one thread and full-length histories, milliseconds of a call; ``speedup_*`` is what the
    fastest quarter of fp32's calls took at most, measured in turns with this form, over this form's.
    """

    ndcg: float
    ndcg_loss: float
    ndcg_loss_low: float
    ndcg_loss_high: float
    top10_overlap: float
    max_score_error: float
    size_bytes: float
    size_ratio: float
    resident_bytes: float
    p50_batch1_ms: float
    p99_batch1_ms: float
    p50_batch32_ms: float
    p99_batch32_ms: float
    speedup_batch1: float
    speedup_batch32: float

    def as_dict(self) -> dict[str, float]:
        """Returns plain numbers for the manifest, without those that are not finite."""
        return {name: float(value) for name, value in asdict(self).items() if np.isfinite(value)}


def paired_loss(
    exact: NDArray[np.float64], found: NDArray[np.float64], *, seed: int = 0
) -> tuple[float, float, float]:
    """Returns the relative loss of a mean and its 95 % interval, from the same users' values in both forms.

    ``exact``, ``found``: (n_users,). Users are resampled in pairs: what makes one hard is the same in both.
    Where fp32 itself gets nothing right no loss can be shown: all may be lost (0, 0, 1).
    """
    if not exact.mean() > 0:
        return 0.0, 0.0, 1.0
    rng = np.random.default_rng(seed)
    losses = np.empty(N_BOOTSTRAP)
    difference = exact - found
    for i in range(N_BOOTSTRAP):
        losses[i] = difference[rng.integers(0, len(difference), len(difference))].mean()
    low, high = np.percentile(losses / exact.mean(), [2.5, 97.5])
    return float(difference.mean() / exact.mean()), float(low), float(high)


def refusal(measured: Measured, budget: GateBudget, beside: Measured | None = None) -> str:
    """Returns why a form may not be served, with the figures; an empty string when it may.

    ``beside``: what it has to be smaller or faster than, where that is not fp32 over the float32 item table.
    """
    broken = [name for name in asdict(measured) if name not in measured.as_dict()]
    if broken:
        return f"{', '.join(broken)} not finite"
    if measured.ndcg_loss_high > budget.max_loss:
        return (
            f"NDCG@10 lost {measured.ndcg_loss:.1%}, up to {measured.ndcg_loss_high:.1%}; "
            f"allowed {budget.max_loss:.1%}"
        )
    if is_smaller(measured, beside) or is_faster(measured, beside):
        return ""
    return (
        f"neither smaller ({measured.size_ratio:.2f} of fp32's bytes) nor faster "
        f"({measured.speedup_batch1:.2f}× for 1 history, {measured.speedup_batch32:.2f}× for 32)"
    )


def is_smaller(measured: Measured, beside: Measured | None = None) -> bool:
    """Whether the form has fewer bytes than fp32 (or ``beside``), beyond the margin."""
    return measured.size_ratio < (1 - MARGIN) * (beside.size_ratio if beside else 1)


def is_faster(measured: Measured, beside: Measured | None = None) -> bool:
    """Whether the form beats fp32 (or ``beside``) at one of the batch sizes, beyond the margin."""
    gains = (
        measured.speedup_batch1 / (beside.speedup_batch1 if beside else 1),
        measured.speedup_batch32 / (beside.speedup_batch32 if beside else 1),
    )
    return max(gains) > 1 + MARGIN


def pareto_front(measured: dict[str, Measured]) -> list[str]:
    """Returns the forms that no other beats at once in NDCG@10, bytes, and time at both batch sizes."""

    def costs(form: Measured) -> NDArray[np.float64]:
        return np.array([-form.ndcg, form.size_bytes, form.p50_batch1_ms, form.p50_batch32_ms])

    front = []
    for name, form in measured.items():
        others = [costs(other) for key, other in measured.items() if key != name]
        mine = costs(form)
        if not any((theirs <= mine).all() and (theirs < mine).any() for theirs in others):
            front.append(name)
    return front


def fastest(measured: dict[str, Measured]) -> str:
    """Returns the form with the best product of the speed-ups at both batch sizes."""
    return max(measured, key=lambda name: measured[name].speedup_batch1 * measured[name].speedup_batch32)
