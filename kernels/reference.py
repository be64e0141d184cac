"""The NumPy twins of the public kernels: short, slow, equal bit for bit where both sum in one order."""

import numpy as np
import numpy.typing as npt

from recserve.kernels.checks import Exclude
from recserve.kernels.reference_slates import calibrated as calibrated
from recserve.kernels.reference_slates import dot_products as dot_products
from recserve.kernels.reference_slates import dpp as dpp
from recserve.kernels.reference_slates import mmr as mmr
from recserve.kernels.reference_slates import nearest_of as nearest_of

Scores = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int32]
Numbers = npt.NDArray[np.float64]


def exact_top_k(
    vectors: Scores,
    queries: Scores,
    k: int,
    *,
    exclude: Exclude | None = None,
    allow: npt.NDArray[np.bool_] | None = None,
    bias: Scores | None = None,
) -> tuple[Scores, Indices]:
    """Scores every item for every query and sorts: the twin of recserve.kernels.exact_top_k."""
    batch, n_items = len(queries), len(vectors)
    scores = dot_products(queries, vectors)
    if bias is not None:
        scores = scores + bias
    may_return = np.broadcast_to(True if allow is None else allow, (batch, n_items)).copy()
    if exclude is not None:
        indptr, item_indices = exclude
        for query in range(batch):
            may_return[query, item_indices[indptr[query] : indptr[query + 1]]] = False

    out_scores = np.full((batch, k), -np.inf, np.float32)
    out_indices = np.full((batch, k), -1, np.int32)
    for query in range(batch):
        items = np.flatnonzero(may_return[query])
        best = items[np.argsort(-scores[query, items], kind="stable")][:k]
        out_scores[query, : len(best)] = scores[query, best] + np.float32(0.0)
        out_indices[query, : len(best)] = best
    return out_scores, out_indices


def fold_in(
    vectors: Scores,
    interactions: Exclude,
    weights: Scores,
    reg: float,
    *,
    reg_exponent: float = 0.0,
    gram: npt.NDArray[np.float64] | None = None,
) -> Scores:
    """Solves one user at a time with numpy.linalg: the twin of recserve.kernels.fold_in."""
    indptr, item_indices = interactions
    items = vectors.astype(np.float64)
    gram = items.T @ items if gram is None else gram
    users = np.zeros((len(indptr) - 1, items.shape[1]), np.float32)
    for user in range(len(users)):
        part = slice(indptr[user], indptr[user + 1])
        history, weight = items[item_indices[part]], weights[part].astype(np.float64)
        if len(history):
            ridge = reg * (len(items) + weight.sum()) ** reg_exponent
            left = gram + (history.T * weight) @ history + ridge * np.eye(items.shape[1])
            users[user] = np.linalg.solve(left, history.T @ (1.0 + weight))
    return users


def fold_in_shares(
    vectors: Scores,
    history: npt.NDArray[np.int32],
    weight: float,
    targets: npt.NDArray[np.int32],
    n: int,
    reg: float,
    *,
    reg_exponent: float = 0.0,
    gram: npt.NDArray[np.float64],
) -> tuple[npt.NDArray[np.int32], Scores]:
    """Inverts the whole matrix and sorts all shares: the twin of recserve.kernels.fold_in_shares."""
    distinct, counts = np.unique(history, return_counts=True)
    items, weights = vectors.astype(np.float64), counts * np.float64(np.float32(weight))
    ridge = reg * (len(items) + weights.sum()) ** reg_exponent
    left = gram + (items[distinct].T * weights) @ items[distinct] + ridge * np.eye(items.shape[1])
    shares = items[targets] @ np.linalg.inv(left) @ items[distinct].T * (1.0 + weights)
    order = np.argsort(-shares, axis=1, kind="stable")[:, :n]
    return distinct[order], np.take_along_axis(shares, order, axis=1).astype(np.float32)


def count_repeats(interactions: Exclude) -> tuple[Exclude, Scores]:
    """Counts one user at a time: the twin of recserve.kernels.count_repeats."""
    indptr, item_indices = interactions
    rows = [np.unique(row, return_counts=True) for row in np.split(item_indices, indptr[1:-1])]
    once = np.cumsum([0] + [len(items) for items, _ in rows[: len(indptr) - 1]]).astype(np.int64)
    items = np.concatenate([items for items, _ in rows]).astype(np.int32)
    return (once, items), np.concatenate([counts for _, counts in rows]).astype(np.float32)


def als_step(
    vectors: Scores,
    others: Scores,
    interactions: Exclude,
    weights: Scores,
    reg: float,
    *,
    reg_exponent: float = 0.0,
    gram: npt.NDArray[np.float64] | None = None,
    n_steps: int = 3,
) -> float:
    """Conjugate gradients on whole matrices, in float64: the twin of recserve.kernels.als_step."""
    indptr, indices = interactions
    gram = gram_matrix(others) if gram is None else gram
    loss = 0.0
    for row in range(len(vectors)):
        part = slice(indptr[row], indptr[row + 1])
        near, weight, x = (
            others[indices[part]].astype(np.float64),
            weights[part],
            vectors[row].astype(np.float64),
        )
        if not len(near):
            vectors[row] = 0
            continue
        scores = near @ x
        loss += x @ gram @ x + ((1 + weight) * (1 - scores) ** 2 - scores**2).sum()
        ridge = reg * (len(others) + weight.sum()) ** reg_exponent
        left = gram + (near.T * weight) @ near + ridge * np.eye(len(x))
        residual = near.T @ (1.0 + weight) - left @ x
        direction = residual
        for _ in range(n_steps):
            squared = residual @ residual
            if squared < 1e-20:
                break
            length = squared / (direction @ left @ direction)
            x, residual = x + length * direction, residual - length * (left @ direction)
            direction = residual + residual @ residual / squared * direction
        vectors[row] = x
    return float(loss)


def gram_matrix(vectors: Scores) -> npt.NDArray[np.float64]:
    """Multiplies in one piece: the twin of recserve.kernels.gram_matrix."""
    items = vectors.astype(np.float64)
    return items.T @ items


def bpr_steps(
    users: Scores,
    items: Scores,
    triples: tuple[Indices, Indices, Indices],
    learning_rate: float,
    reg: float,
) -> float:
    """Moves three whole vectors per triple: the twin of recserve.kernels.bpr_steps."""
    losses = []
    for user, positive, negative in zip(*triples, strict=True):
        u, i, j = users[user].copy(), items[positive].copy(), items[negative].copy()
        margin = float(u @ i - u @ j)
        slope = np.float32(1 / (1 + np.exp(margin)))
        losses.append(float(np.logaddexp(0, -margin)))
        items[positive] = i + np.float32(learning_rate) * (slope * u - np.float32(reg) * i)
        items[negative] = j + np.float32(learning_rate) * (-slope * u - np.float32(reg) * j)
        users[user, :-1] = (u + np.float32(learning_rate) * (slope * (i - j) - np.float32(reg) * u))[:-1]
    return sum(losses) / max(1, len(losses))


def svd_steps(
    users: Scores,
    items: Scores,
    ratings: Exclude,
    values: Scores,
    order: Indices,
    learning_rate: float,
    reg: float,
    *,
    implicit: Scores | None = None,
) -> float:
    """Moves every vector in every step, each y of SVD++ too: the twin of recserve.kernels.svd_steps."""
    indptr, item_indices = ratings
    rate, total = np.float32(learning_rate), 0.0
    for user in order:
        part = slice(indptr[user], indptr[user + 1])
        mine = item_indices[part]
        for item, value in zip(mine, values[part], strict=True):
            u, i = users[user].copy(), items[item].copy()
            if implicit is not None:
                u[:-2] += implicit[mine].sum(axis=0) / np.sqrt(np.float32(len(mine)))
            error = value - u @ i
            total += float(error) ** 2
            users[user, :-1] += rate * (error * i - np.float32(reg) * users[user])[:-1]
            items[item] = i + rate * (error * u - np.float32(reg) * i)
            items[item, -2] = i[-2]
            if implicit is not None:
                pull = error * i[:-2] / np.sqrt(np.float32(len(mine)))
                implicit[mine] += rate * (pull - np.float32(reg) * implicit[mine])
    return total


def co_occurrences(by_user: Exclude, by_item: Exclude, first: int, last: int) -> Scores:
    """Multiplies the dense matrix by itself: the twin of recserve.kernels.co_occurrences."""
    indptr, item_indices = by_user
    had = np.zeros((len(indptr) - 1, len(by_item[0]) - 1), np.float32)
    had[np.repeat(np.arange(len(had)), np.diff(indptr)), item_indices] = 1
    return (had.T @ had)[first:last]


def ftrl_steps(
    state: tuple[Numbers, Numbers],
    weights: Scores,
    examples: Exclude,
    values: Numbers,
    labels: npt.NDArray[np.bool_],
    *,
    alpha: float,
    beta: float,
    l1: float,
    l2: float,
) -> Numbers:
    """Writes Algorithm 1 of the paper down: the twin of recserve.kernels.ftrl_steps."""
    (z, n), (indptr, indices) = state, examples

    def weight(feature: int) -> float:
        shrunk = np.sign(z[feature]) * max(abs(z[feature]) - l1, 0.0)
        return float(-shrunk / ((beta + np.sqrt(n[feature])) / alpha + l2))

    losses = np.empty(len(labels))
    for example, label in enumerate(labels):
        part = range(indptr[example], indptr[example + 1])
        margin = sum(weight(indices[position]) * values[position] for position in part)
        losses[example] = np.logaddexp(0.0, -margin if label else margin)
        slope = 1.0 / (1.0 + np.exp(-margin)) - label
        for position in part:
            feature, gradient = indices[position], slope * values[position]
            rate = (np.sqrt(n[feature] + gradient**2) - np.sqrt(n[feature])) / alpha
            z[feature] += gradient - rate * weight(feature)
            n[feature] += gradient**2
            weights[feature] = weight(feature)
    return losses


def linear_steps(
    state: tuple[Numbers, Numbers], features: Numbers, clicked: npt.NDArray[np.bool_]
) -> Numbers:
    """Inverts A anew for every impression: the twin of recserve.kernels.linear_steps."""
    inverse, theta = state
    losses = np.empty(len(features))
    for row, x in enumerate(features):
        mean = x @ theta
        if clicked[row]:
            losses[row] = 1.0 - 2.0 * mean
            theta += inverse @ x
        else:
            losses[row] = mean * mean
            moments = np.linalg.inv(inverse)
            clicks = moments @ theta
            inverse[:] = np.linalg.inv(moments + np.outer(x, x))
            theta[:] = inverse @ clicks
    return losses


def linear_widths(inverse: Numbers, features: Numbers) -> Numbers:
    """Is the twin of recserve.kernels.linear_widths."""
    return np.array([np.sqrt(max(x @ inverse @ x, 0.0)) for x in features])


def warmup() -> None:
    """Does nothing: NumPy has nothing to compile. The twin of recserve.kernels.warmup."""


def split_lengths(
    lengths: npt.NDArray[np.int64], call_positions: float
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Splits recursively: the twin of recserve.kernels.split_lengths."""
    rows = np.argsort(-lengths, kind="stable")

    def split(start: int, end: int) -> list[int]:
        longest = lengths[rows[start]]
        saved = [(end - middle) * int(longest - lengths[rows[middle]]) for middle in range(start + 1, end)]
        if not saved or max(saved) <= call_positions:
            return [end]
        middle = start + 1 + saved.index(max(saved))
        return split(start, middle) + split(middle, end)

    return rows, np.array(split(0, len(rows)) if len(rows) else [], np.int64)


def pad_lists(
    values: npt.NDArray[np.int32],
    ends: npt.NDArray[np.int64],
    rows: npt.NDArray[np.int64],
    length: int,
) -> npt.NDArray[np.int32]:
    """Pads list by list: the twin of recserve.kernels.pad_lists."""
    out = np.full((len(rows), length), -1, np.int32)
    for target, row in zip(out, rows.tolist(), strict=True):
        newest = values[0 if row == 0 else ends[row - 1] : ends[row]][-length or len(values) :]
        target[length - len(newest) :] = newest
    return out


def encode_slate_items(
    id_offsets: npt.NDArray[np.int64],
    id_bytes: npt.NDArray[np.uint8],
    items: npt.NDArray[np.int32],
    scores: npt.NDArray[np.float32],
    lengths: npt.NDArray[np.int64],
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Writes every message by hand: the twin of recserve.kernels.encode_slate_items."""
    out, ends = b"", []
    for row, length in enumerate(lengths):
        found = [column for column in range(length) if items[row, column] >= 0]
        for rank, column in enumerate(found, start=1):
            item = items[row, column]
            item_id = id_bytes[id_offsets[item] : id_offsets[item + 1]].tobytes()
            message = b"\x0a" + _varint(len(item_id)) + item_id + b"\x15" + scores[row, column].tobytes()
            message += b"\x18" + _varint(rank)
            out += b"\x0a" + _varint(len(message)) + message
        ends.append(len(out))
    return np.frombuffer(out, np.uint8), np.array(ends, np.int64)


def _varint(value: int) -> bytes:
    head = b""
    while value >= 0x80:
        head += bytes([value & 0x7F | 0x80])
        value >>= 7
    return head + bytes([value])
