"""Rating prediction: stochastic gradient steps of SVD and SVD++ over users and their ratings."""

# mypy: allow-untyped-defs

import numpy as np
import numpy.typing as npt

from recserve.errors import InvalidRequest
from recserve.kernels import checks
from recserve.kernels.checks import Exclude
from recserve.kernels.jit import kernel
from recserve.kernels.simd import dot

Vectors = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int32]
# The bias of the user and the constant against the bias of the item; in the items' table the other way round.
BIAS_COLUMNS = 2


def svd_steps(
    users: Vectors,
    items: Vectors,
    ratings: Exclude,
    values: Vectors,
    order: Indices,
    learning_rate: float,
    reg: float,
    *,
    implicit: Vectors | None = None,
) -> float:
    """Makes one step per rating of the users in ``order``; returns the sum of squared errors before each.

    users: (n_users, d + 2), items: (n_items, d + 2), float32 C-order, changed in place. Column d of ``users``
    is the user's bias and column d + 1 stays as it is; column d of ``items`` stays as it is and column d + 1
    is the item's bias: with ones in those that stay, u·i is the prediction · ratings: (indptr
    (n_users + 1,) int64, item_indices int32, an item once per user) · values: float32, one per rating, what
    u·i shall become · order: int32 user indices · learning_rate, reg: ≥ 0.
    Every vector goes down the gradient of (value − u·i)² / 2 with ``reg`` times itself added (Koren, Bell,
    Volinsky 2009, doi:10.1109/MC.2009.263).
    implicit: (n_items, d), changed in place: SVD++ (Koren 2008, doi:10.1145/1401890.1401944), where
    n^(−1/2) Σ y over the n items that the user rated is added to the user's factors. All y of one user move
    by the same vector, so a step costs d operations and not n·d, with the result of n steps one by one.
    Raises InvalidRequest where an argument does not fit.
    """
    _check_tables(users, items, implicit)
    indptr, item_indices = checks.check_interactions(ratings, len(items))
    if len(indptr) != len(users) + 1:
        raise InvalidRequest("ratings", found=f"of {len(indptr) - 1} users", expected=f"{len(users)} users")
    if not isinstance(values, np.ndarray) or values.dtype != np.float32 or values.shape != item_indices.shape:
        raise InvalidRequest(
            "values", found=checks.kind_of(values), expected=f"float32 of shape {item_indices.shape}"
        )
    if not np.isfinite(values).all():
        raise InvalidRequest("values", found="not finite", expected="numbers")
    checks.check_items("order", order, len(users))
    for name, value in (("learning_rate", learning_rate), ("reg", reg)):
        if not 0 <= value < np.inf:
            raise InvalidRequest(name, found=value, expected="a number of at least 0")
    rate, shrink = np.float32(learning_rate), np.float32(reg)
    lists = indptr, item_indices, checks.read_only(values), checks.read_only(order)
    if implicit is None:
        return float(_svd(users, items, *lists, rate, shrink))
    return float(_svdpp(users, items, implicit, *lists, rate, shrink))


def _check_tables(users: Vectors, items: Vectors, implicit: Vectors | None) -> None:
    tables = {"users": users, "items": items} | ({} if implicit is None else {"implicit": implicit})
    for name, table in tables.items():
        checks.check_matrix(name, table)
        if not (table.flags.c_contiguous and table.flags.writeable):
            raise InvalidRequest(name, found="read-only or not C-order", expected="a writable C-order array")
    width = users.shape[1]
    if width <= BIAS_COLUMNS or items.shape[1] != width:
        raise InvalidRequest(
            "items",
            found=f"of shape {items.shape}",
            expected=f"shape (n, {max(3, width)}), 3 or more columns",
        )
    if implicit is not None and implicit.shape != (len(items), width - BIAS_COLUMNS):
        expected = f"shape {(len(items), width - BIAS_COLUMNS)}"
        raise InvalidRequest("implicit", found=f"of shape {implicit.shape}", expected=expected)


@kernel
def _svd(users, items, indptr, item_indices, values, order, learning_rate, reg):
    dim = users.shape[1] - 2
    total = 0.0
    for step in range(order.shape[0]):
        user = order[step]
        for position in range(indptr[user], indptr[user + 1]):
            item = item_indices[position]
            error = values[position] - dot(users, user, items, item)
            total += error * error
            for j in range(dim):
                u, i = users[user, j], items[item, j]
                users[user, j] = u + learning_rate * (error * i - reg * u)
                items[item, j] = i + learning_rate * (error * u - reg * i)
            users[user, dim] += learning_rate * (error * items[item, dim] - reg * users[user, dim])
            items[item, dim + 1] += learning_rate * (
                error * users[user, dim + 1] - reg * items[item, dim + 1]
            )
    return total


@kernel
def _svdpp(users, items, implicit, indptr, item_indices, values, order, learning_rate, reg):
    dim = users.shape[1] - 2
    whole = np.empty((1, dim + 2), np.float32)
    had, moved = np.empty(dim, np.float32), np.empty(dim, np.float32)
    kept_of_one = np.float32(1.0) - learning_rate * reg
    total = 0.0
    for step in range(order.shape[0]):
        user = order[step]
        first, last = indptr[user], indptr[user + 1]
        if first == last:
            continue
        scale = np.float32(1.0 / np.sqrt(np.float64(last - first)))
        had[:] = 0
        moved[:] = 0
        kept = np.float32(1.0)
        for position in range(first, last):
            for j in range(dim):
                had[j] += implicit[item_indices[position], j]
        for j in range(dim):
            had[j] *= scale
        for position in range(first, last):
            item = item_indices[position]
            for j in range(dim):
                whole[0, j] = users[user, j] + had[j]
            whole[0, dim], whole[0, dim + 1] = users[user, dim], users[user, dim + 1]
            error = values[position] - dot(whole, 0, items, item)
            total += error * error
            for j in range(dim):
                u, i = users[user, j], items[item, j]
                slope = error * i
                users[user, j] = u + learning_rate * (slope - reg * u)
                items[item, j] = i + learning_rate * (error * whole[0, j] - reg * i)
                # Each y becomes kept · y + moved; their scaled sum follows without touching them.
                moved[j] = kept_of_one * moved[j] + learning_rate * scale * slope
                had[j] = kept_of_one * had[j] + learning_rate * slope
            kept *= kept_of_one
            users[user, dim] += learning_rate * (error * items[item, dim] - reg * users[user, dim])
            items[item, dim + 1] += learning_rate * (
                error * users[user, dim + 1] - reg * items[item, dim + 1]
            )
        for position in range(first, last):
            item = item_indices[position]
            for j in range(dim):
                implicit[item, j] = kept * implicit[item, j] + moved[j]
    return total
