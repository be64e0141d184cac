"""Pairwise ranking: stochastic gradient steps over given triples, one after the other."""

# mypy: allow-untyped-defs

import numpy as np
import numpy.typing as npt

from recserve.errors import InvalidRequest
from recserve.kernels import checks
from recserve.kernels.jit import kernel
from recserve.kernels.simd import dot

Vectors = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int32]


def bpr_steps(
    users: Vectors,
    items: Vectors,
    triples: tuple[Indices, Indices, Indices],
    learning_rate: float,
    reg: float,
) -> float:
    """Makes one step per triple (user, item had, item not had), in order; returns the mean loss before each.

    users: (n_users, d), items: (n_items, d), both float32 C-order, changed in place; the last column of
    ``users`` stays as it is, so that with ones there the last column of ``items`` is a bias · triples: three
    int32 arrays of one length · learning_rate, reg: ≥ 0. The loss of a triple is −ln σ(u·i − u·j); each of
    the three vectors goes down its gradient with ``reg`` times itself added (Rendle, Freudenthaler, Gantner,
    Schmidt-Thieme, "BPR: Bayesian Personalized Ranking from Implicit Feedback", 2009, arXiv:1205.2618).
    Raises InvalidRequest where an argument does not fit.
    """
    for name, table in (("users", users), ("items", items)):
        checks.check_matrix(name, table)
        if not (table.flags.c_contiguous and table.flags.writeable):
            raise InvalidRequest(name, found="read-only or not C-order", expected="a writable C-order array")
    if users.shape[1] != items.shape[1]:
        raise InvalidRequest(
            "items", found=f"of shape {items.shape}", expected=f"shape (n, {users.shape[1]})"
        )
    names, limits = ("users", "positives", "negatives"), (len(users), len(items), len(items))
    checked = [
        checks.read_only(checks.check_items(f"triples {name}", indices, limit))
        for name, indices, limit in zip(names, triples, limits, strict=True)
    ]
    if len({len(indices) for indices in checked}) != 1:
        raise InvalidRequest("triples", found="of several lengths", expected="three arrays of one length")
    for name, value in (("learning_rate", learning_rate), ("reg", reg)):
        if not 0 <= value < np.inf:
            raise InvalidRequest(name, found=value, expected="a number of at least 0")
    total = _steps(users, items, *checked, np.float32(learning_rate), np.float32(reg))
    return float(total / max(1, len(checked[0])))


@kernel
def _steps(users, items, who, positives, negatives, learning_rate, reg):
    last = users.shape[1] - 1
    one = np.float32(1.0)
    total = 0.0
    for step in range(who.shape[0]):
        user, positive, negative = who[step], positives[step], negatives[step]
        margin = dot(users, user, items, positive) - dot(users, user, items, negative)
        # σ(−margin) and −ln σ(margin), neither overflowing.
        small = np.exp(-abs(margin))
        slope = small / (one + small) if margin > 0 else one / (one + small)
        total += np.log1p(small) + max(-margin, np.float32(0.0))
        for j in range(last + 1):
            u, i, n = users[user, j], items[positive, j], items[negative, j]
            items[positive, j] = i + learning_rate * (slope * u - reg * i)
            items[negative, j] = n + learning_rate * (-slope * u - reg * n)
            if j < last:
                users[user, j] = u + learning_rate * (slope * (i - n) - reg * u)
    return total
