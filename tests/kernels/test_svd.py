"""Steps of SVD and SVD++ against their twin and against the gradient that they follow."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recserve.errors import InvalidRequest
from recserve.kernels import reference, svd_steps

N_USERS, N_ITEMS = 4, 7


def problem(seed: int, dim: int, *, plus: bool = False) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    users, items = (rng.normal(0, 0.5, (n, dim + 2)).astype(np.float32) for n in (N_USERS, N_ITEMS))
    users[:, dim + 1] = items[:, dim] = 1
    rows = [rng.permutation(N_ITEMS)[: rng.integers(0, N_ITEMS)] for _ in range(N_USERS)]
    indptr = np.cumsum([0, *map(len, rows)]).astype(np.int64)
    return {
        "users": users,
        "items": items,
        "ratings": (indptr, np.concatenate(rows).astype(np.int32)),
        "values": rng.normal(0, 1, indptr[-1]).astype(np.float32),
        "order": rng.permutation(N_USERS).astype(np.int32),
        "learning_rate": 0.05,
        "reg": 0.02,
        "implicit": rng.normal(0, 0.5, (N_ITEMS, dim)).astype(np.float32) if plus else None,
    }


def copied(arguments: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value.copy() if isinstance(value, np.ndarray) else value for name, value in arguments.items()
    }


@settings(derandomize=True, deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 20), st.booleans())
def test_equals_the_reference(seed: int, dim: int, plus: bool) -> None:
    found, expected = problem(seed, dim, plus=plus), problem(seed, dim, plus=plus)
    for _ in range(2):
        assert svd_steps(**found) == pytest.approx(reference.svd_steps(**expected), rel=1e-3, abs=1e-6)
    for name in ("users", "items", *(["implicit"] if plus else [])):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("plus", [False, True])
def test_a_step_is_the_gradient_of_the_loss(plus: bool) -> None:
    before = problem(3, 4, plus=plus) | {"reg": 0.0, "learning_rate": 1e-3}
    before["ratings"] = np.array([0, 1, 1, 1, 1]), np.array([2], np.int32)
    before["values"], before["order"] = before["values"][:1], np.array([0], np.int32)
    after = copied(before)
    svd_steps(**after)
    learned = {"users": (0, slice(0, 5)), "items": (2, [0, 1, 2, 3, 5])}
    if plus:
        learned["implicit"] = (2, slice(0, 4))
    for name, (row, columns) in learned.items():
        for column in np.arange(before[name].shape[1])[columns]:
            losses = []
            for sign in (1, -1):
                moved = copied(before) | {"learning_rate": 0.0}
                moved[name][row, column] += sign * 1e-2
                losses.append(svd_steps(**moved) / 2)
            slope = (losses[0] - losses[1]) / 2e-2
            step = (after[name] - before[name])[row, column] / 1e-3
            assert step == pytest.approx(-slope, abs=2e-3)


@pytest.mark.parametrize("plus", [False, True])
def test_the_columns_of_ones_stay(plus: bool) -> None:
    arguments = problem(5, 6, plus=plus)
    svd_steps(**arguments)
    assert (arguments["users"][:, -1] == 1).all()
    assert (arguments["items"][:, -2] == 1).all()
    assert (arguments["items"][:, -1] != problem(5, 6)["items"][:, -1]).any()


def test_users_who_are_not_in_the_order_stay() -> None:
    arguments = problem(6, 3, plus=True) | {"order": np.array([2], np.int32)}
    before = copied(arguments)
    svd_steps(**arguments)
    others = [0, 1, 3]
    assert (arguments["users"][others] == before["users"][others]).all()
    assert svd_steps(**(arguments | {"order": np.empty(0, np.int32)})) == 0.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"users": np.ones((4, 5), np.float64)}, "users is float64"),
        ({"users": np.ones((5, 4), np.float32).T}, "users is read-only or not C-order"),
        ({"items": np.ones((7, 4), np.float32)}, "items is of shape"),
        ({"implicit": np.ones((7, 5), np.float32)}, "implicit is of shape"),
        ({"ratings": (np.zeros(3, np.int64), np.empty(0, np.int32))}, "ratings is of 2 users"),
        ({"values": np.ones(2, np.float32)}, "values is float32 of shape"),
        ({"order": np.array([4], np.int32)}, "order\\[0\\] is 4"),
        ({"learning_rate": -1.0}, "learning_rate is -1"),
        ({"reg": float("nan")}, "reg is nan"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        svd_steps(**(problem(1, 3, plus=True) | change))


def test_a_rating_that_is_no_number_is_refused() -> None:
    arguments = problem(1, 3)
    arguments["values"][0] = np.nan
    with pytest.raises(InvalidRequest, match="values is not finite"):
        svd_steps(**arguments)
