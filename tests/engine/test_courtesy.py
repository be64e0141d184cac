"""How much of its time a thread without haste gives to others."""

from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st

from recserve.engine.courtesy import MAX_CREDIT_SECONDS, SHARE, Courtesy

SECONDS = st.floats(0, 0.01)


class Clock:
    """Time that passes by work, and while others have their turns."""

    def __init__(self, turns: Iterator[float]) -> None:
        self.now = self.given = 0.0
        self.n_turns = 0
        self._turns = turns

    def give_way(self) -> None:
        turn = next(self._turns)
        self.n_turns += 1
        self.given += turn
        self.now += turn


def work(seconds: list[float], turns: list[float]) -> Clock:
    clock = Clock(iter(turns))
    courtesy = Courtesy(clock.give_way, lambda: clock.now)
    for step in seconds:
        clock.now += step
        courtesy()
    return clock


@given(st.lists(SECONDS), st.data())
def test_others_get_no_more_than_their_share_and_one_turn(steps: list[float], data: st.DataObject) -> None:
    turns = data.draw(st.lists(SECONDS, min_size=len(steps), max_size=len(steps)))
    clock = work(steps, turns)
    assert clock.given <= SHARE * sum(steps) + max(turns, default=0.0) + 1e-9


@given(st.lists(st.floats(1e-6, 0.01)))
def test_who_finds_nobody_waiting_gives_way_every_time(steps: list[float]) -> None:
    assert work(steps, [0.0] * len(steps)).n_turns == len(steps)


def test_a_long_calm_is_worth_little_afterwards() -> None:
    turn = 0.6 * MAX_CREDIT_SECONDS
    # Two turns take more than the calm was worth; then nothing is left while no time goes by.
    assert work([100.0, 0.0, 0.0, 0.0], [turn] * 4).n_turns == 2
