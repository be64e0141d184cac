"""Pairwise steps against their twin and against the gradient that they follow."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recserve.errors import InvalidRequest
from recserve.kernels import bpr_steps, reference


def problem(seed: int, dim: int, n_steps: int) -> Any:
    rng = np.random.default_rng(seed)
    users, items = (rng.standard_normal((n, dim)).astype(np.float32) for n in (4, 6))
    triples = tuple(rng.integers(0, n, n_steps).astype(np.int32) for n in (4, 6, 6))
    return users, items, triples


@settings(derandomize=True, deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 20), st.integers(0, 30))
def test_equals_the_reference(seed: int, dim: int, n_steps: int) -> None:
    users, items, triples = problem(seed, dim, n_steps)
    their_users, their_items = users.copy(), items.copy()
    found = bpr_steps(users, items, triples, 0.1, 0.01)
    expected = reference.bpr_steps(their_users, their_items, triples, 0.1, 0.01)
    assert found == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(users, their_users, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(items, their_items, rtol=1e-4, atol=1e-5)


def test_a_step_is_the_gradient_of_the_loss() -> None:
    users, items, _ = problem(3, 5, 0)
    triple = tuple(np.array([index], np.int32) for index in (1, 2, 4))
    change = 1e-2
    for table, row in ((users, 1), (items, 2), (items, 4)):
        moved_users, moved_items = users.copy(), items.copy()
        bpr_steps(moved_users, moved_items, triple, change, 0.0)
        step = (moved_users if table is users else moved_items)[row] - table[row]
        for column in range(4):
            losses = []
            for sign in (1, -1):
                tables = users.copy(), items.copy()
                tables[0 if table is users else 1][row, column] += sign * 1e-2
                losses.append(bpr_steps(*tables, triple, 0.0, 0.0))
            assert step[column] / change == pytest.approx(-(losses[0] - losses[1]) / 2e-2, abs=1e-3)


def test_the_last_column_of_the_users_stays() -> None:
    users, items, triples = problem(4, 6, 200)
    users[:, -1] = 1
    bpr_steps(users, items, triples, 0.1, 0.1)
    assert (users[:, -1] == 1).all()
    assert items[:, -1].any()


def test_scores_far_apart_do_not_overflow() -> None:
    users, items = np.full((1, 2), 1e4, np.float32), np.array([[1e4, 0], [-1e4, 0]], np.float32)
    one, zero = np.ones(1, np.int32), np.zeros(1, np.int32)
    assert bpr_steps(users.copy(), items.copy(), (zero, zero, one), 0.1, 0.0) == 0.0
    assert bpr_steps(users.copy(), items.copy(), (zero, one, zero), 1e-9, 0.0) == pytest.approx(2e8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"users": np.ones((4, 3), np.float64)}, "users is float64"),
        ({"users": np.ones((3, 4), np.float32).T}, "users is read-only or not C-order"),
        ({"items": np.ones((6, 4), np.float32)}, "items is of shape"),
        ({"triples": (np.zeros(2, np.int32),) * 2 + (np.zeros(1, np.int32),)}, "of several lengths"),
        ({"triples": (np.full(2, 4, np.int32),) * 3}, "triples users\\[0\\] is 4"),
        ({"triples": (np.zeros(2, np.int64),) * 3}, "triples users is int64"),
        ({"learning_rate": -1.0}, "learning_rate is -1"),
        ({"reg": float("nan")}, "reg is nan"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    users, items, triples = problem(1, 3, 2)
    arguments = {"users": users, "items": items, "triples": triples, "learning_rate": 0.1, "reg": 0.0}
    with pytest.raises(InvalidRequest, match=message):
        bpr_steps(**(arguments | change))
