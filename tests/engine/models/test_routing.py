"""The hash that assigns callers: stable for ever, proportional, and monotone for a growing canary."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recserve.engine.models.guard import GuardConfig
from recserve.engine.models.routing import Arm, Route, Shadow, share_of
from recserve.errors import InvalidRequest

WEIGHTS = st.lists(st.floats(0, 100), min_size=1, max_size=6).filter(lambda weights: sum(weights) > 0)


def route_of(weights: list[float], salt: str = "") -> Route:
    return Route(
        arms=tuple(Arm(name=f"a{i}", version=f"v{i}", weight=weight) for i, weight in enumerate(weights)),
        salt=salt,
    )


@pytest.mark.parametrize(
    ("key", "salt", "place"),
    [
        ("u1", "", 0.8164377338417357),
        ("u1", "test-7", 0.6439881051066293),
        ("ünïcode", "", 0.7801799171276336),
    ],
)
def test_the_hash_is_a_contract(key: str, salt: str, place: float) -> None:
    # Changing one of these moves every caller of every running experiment.
    assert share_of(key, salt) == place


@given(st.text(), st.text())
def test_places_are_in_the_unit_interval(key: str, salt: str) -> None:
    assert 0 <= share_of(key, salt) < 1


def test_proportions_are_those_of_the_weights() -> None:
    n = 20_000
    _, (_, second), (_, third) = route_of([5, 3, 2], "x").assign([f"user-{i}" for i in range(n)])
    # Four standard deviations.
    assert abs(len(second) / n - 0.3) < 4 * (0.3 * 0.7 / n) ** 0.5
    assert abs(len(third) / n - 0.2) < 4 * (0.2 * 0.8 / n) ** 0.5


def test_salts_are_independent() -> None:
    users = [f"user-{i}" for i in range(4000)]
    both = sum(share_of(user, "a") < 0.5 and share_of(user, "b") < 0.5 for user in users)
    assert abs(both / len(users) - 0.25) < 0.04


@given(WEIGHTS, st.lists(st.text(), max_size=30))
def test_every_row_is_in_exactly_one_arm_with_weight(weights: list[float], keys: list[str]) -> None:
    route = route_of(weights)
    groups = route.assign(keys)
    assert sorted(row for _, rows in groups for row in rows) == list(range(len(keys)))
    assert all(arm.weight > 0 for arm, rows in groups if rows)
    if route.is_split:
        assert all(route.arm_of(keys[row]) == arm for arm, rows in groups for row in rows)


@given(st.floats(0.001, 0.999), st.floats(0.001, 0.999), st.text())
def test_a_growing_canary_keeps_its_callers(one: float, other: float, user: str) -> None:
    small, large = sorted((one, other))
    if route_of([1 - small, small]).arm_of(user).name == "a1":
        assert route_of([1 - large, large]).arm_of(user).name == "a1"


def test_going_back_gives_everybody_to_the_baseline() -> None:
    route = Route(
        arms=(Arm(name="old", version="v1", weight=0.0), Arm(name="new", version="v2")),
        guard=GuardConfig(),
        shadow=Shadow(version="v3"),
    )
    back = route.baseline_only()
    assert (back.arm_of("anybody").version, back.guard, back.versions) == ("v1", None, ("v1", "v3"))


BAD = {
    "no arms": lambda: Route(arms=()),
    "one name twice": lambda: Route(arms=(Arm(version="v1"), Arm(version="v2"))),
    "no weight": lambda: Route(arms=(Arm(version="v1", weight=0.0),)),
    "too many": lambda: route_of([1.0] * 17),
    "a negative weight": lambda: Arm(version="v1", weight=-1.0),
    "no number": lambda: Arm(version="v1", weight=float("nan")),
    "no version": lambda: Arm(version=""),
    "a guard of nobody": lambda: Route(arms=(Arm(version="v1"),), guard=GuardConfig()),
    "no share": lambda: Shadow(version="v1", share=0.0),
    "a share above one": lambda: Shadow(version="v1", share=1.1),
    "a share that is none": lambda: Shadow(version="v1", share=float("nan")),
    "a guard that judges nothing": lambda: GuardConfig(min_requests=0),
    "a guard without time": lambda: GuardConfig(window_seconds=0.0),
    "a guard that wants speed": lambda: GuardConfig(max_latency_ratio=0.5),
    "an infinite limit": lambda: GuardConfig(max_error_rate=float("inf")),
}


@pytest.mark.parametrize("make", BAD.values(), ids=BAD.keys())
def test_bad_routes_are_refused(make: object) -> None:
    with pytest.raises(InvalidRequest):
        make()  # type: ignore[operator]
