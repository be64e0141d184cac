"""The canary guard as a pure function of counts, and the window that counts, both without sleeping."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recserve.engine.models.guard import (
    N_BUCKETS,
    ArmStats,
    GuardConfig,
    Window,
    judge,
    wilson,
)

CONFIG = GuardConfig()


def stats(n: int, *, errors: int = 0, model_share: float = 0.9, seconds: float = 0.004) -> ArmStats:
    window = Window(1000.0)
    answered = n - errors
    window.record(
        0.0, answered=answered, by_model=round(answered * model_share), errors=errors, seconds=seconds
    )
    return window.stats(0.0)


def reason(arm: ArmStats, baseline: ArmStats, config: GuardConfig = CONFIG) -> str:
    breach = judge("canary", arm, baseline, config)
    return breach.reason if breach else ""


CASES = {
    "as good as the baseline": (stats(500), stats(5000), ""),
    "half of it fails": (stats(200, errors=100), stats(5000), "error_rate"),
    "all of it fails": (stats(100, errors=100), stats(5000), "error_rate"),
    "both fail alike": (stats(400, errors=100), stats(4000, errors=1000), ""),
    "one failure of a hundred may be chance": (stats(100, errors=2), stats(5000), ""),
    "too few to tell": (stats(99, errors=99), stats(5000), ""),
    "nothing to compare with": (stats(500, errors=500), stats(99), ""),
    "twice as slow": (stats(500, seconds=0.009), stats(5000), "latency"),
    "a little slower": (stats(500, seconds=0.0045), stats(5000), ""),
    "ten times slower, and still fast": (stats(500, seconds=0.001), stats(5000, seconds=0.0001), ""),
    "slates of popularity instead of the model": (stats(500, model_share=0.2), stats(5000), "model_share"),
    "a bit fewer slates of the model": (stats(500, model_share=0.87), stats(5000), ""),
    "better than the baseline": (stats(500, model_share=1.0, seconds=0.001), stats(5000, errors=500), ""),
}


@pytest.mark.parametrize(("arm", "baseline", "expected"), CASES.values(), ids=CASES.keys())
def test_verdicts(arm: ArmStats, baseline: ArmStats, expected: str) -> None:
    assert reason(arm, baseline) == expected


@given(st.integers(100, 5000), st.integers(0, 100), st.integers(100, 5000))
def test_more_errors_never_help(n: int, errors: int, baseline: int) -> None:
    worse = reason(stats(n, errors=min(n, errors + 10)), stats(baseline))
    assert worse or not reason(stats(n, errors=errors), stats(baseline))


@given(st.integers(1, 10_000), st.data())
def test_the_interval_holds_the_proportion(n: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, n))
    low, high = wilson(successes, n)
    assert -1e-9 <= low <= successes / n + 1e-9
    assert successes / n - 1e-9 <= high <= 1 + 1e-9


def test_a_breach_says_what_was_found() -> None:
    breach = judge("canary", stats(200, errors=100), stats(5000, errors=50), CONFIG)
    assert breach is not None
    assert (breach.arm, breach.found, breach.limit) == ("canary", 0.5, pytest.approx(0.02))


def test_the_window_forgets() -> None:
    window = Window(10.0)
    window.record(100.0, answered=3, seconds=0.001)
    window.record(104.0, errors=1)
    assert window.stats(104.9).requests == 4
    window.record(106.0, answered=5, seconds=0.001)
    assert window.stats(106.0).requests == 9, "the half before still counts"
    assert window.stats(111.5).requests == 5
    assert window.stats(130.0).requests == 0


@given(st.floats(0, 1e4))
def test_any_latency_has_a_bucket_near_it(seconds: float) -> None:
    found = stats(1, seconds=seconds).latency(0.5)
    assert sum(stats(1, seconds=seconds).latencies) == 1
    if 1e-5 < seconds < 90:
        assert seconds <= found * 1.0001
        assert found <= seconds * 2**0.25 * 1.0001
    assert len(stats(1).latencies) == N_BUCKETS
