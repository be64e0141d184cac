"""The highest rate that holds, by doubling and then bisection."""

from collections.abc import Callable

MAX_DOUBLINGS = 20


def highest_rate(
    holds: Callable[[float], bool], lowest: float, precision: float
) -> tuple[float | None, float | None]:
    """Returns the highest rate found to hold and the lowest found not to; None for what was not met.

    They lie apart by at most the share ``precision`` of the first. ``holds`` is asked once per rate; a
    measured promise is noisy: one rate held, one broke, and between them is the answer.
    """
    good, bad = None, None
    rate = lowest
    for _ in range(MAX_DOUBLINGS):
        if not holds(rate):
            bad = rate
            break
        good, rate = rate, 2 * rate
    if good is None or bad is None:
        return good, bad
    while bad - good > precision * good:
        middle = (good + bad) / 2
        if holds(middle):
            good = middle
        else:
            bad = middle
    return good, bad
