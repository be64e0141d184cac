"""When the model is left alone, and when it is tried again."""

from hypothesis import given
from hypothesis import strategies as st

from recserve.engine.breaker import CLOSED, FAILURES, OPEN_SECONDS, WITHIN_SECONDS


@given(st.lists(st.tuples(st.floats(0, 4), st.booleans()), max_size=60))
def test_it_opens_after_failures_in_a_row_within_the_time_only(batches: list[tuple[float, bool]]) -> None:
    breaker, now = CLOSED, 0.0
    row: list[float] = []
    for gap, failed in batches:
        now += gap
        tried_again = breaker is not CLOSED and breaker.open_until > 0
        breaker = breaker.after(failed, now)
        row = [*row, now] if failed else []
        recent = [at for at in row if now - at < WITHIN_SECONDS]
        assert breaker.is_open(now) == (failed and (len(recent) >= FAILURES or tried_again))


def test_it_is_open_for_a_while_and_one_good_batch_closes_it() -> None:
    breaker = CLOSED
    for _ in range(FAILURES):
        breaker = breaker.after(True, 100.0)
    assert breaker.is_open(100.0 + OPEN_SECONDS - 0.01)
    assert not breaker.is_open(100.0 + OPEN_SECONDS)
    assert breaker.after(True, 200.0).is_open(200.0)
    assert breaker.after(False, 200.0) == CLOSED
