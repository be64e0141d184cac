"""A small two-tower model: what retrieval by a neural network leaves in the index, unit vectors.

The user tower is a multi-layer perceptron over the mean of the newest items of the history; the item tower is
an embedding, as large catalogues have it. The loss is the softmax over the other targets of the batch,
corrected by the logarithm of how often an item is such a target (Yi et al., "Sampling-Bias-Corrected Neural
Modeling for Large Corpus Item Recommendations", 2019).
"""

import numpy as np
import numpy.typing as npt

from recserve.benchmarks.kernels.interactions import Interactions

Vectors = npt.NDArray[np.float32]

HISTORY = 20
BATCH = 1024
EPOCHS = 2
LEARNING_RATE = 3e-3
TEMPERATURE = 0.07
USERS_AT_ONCE = 8192


def train(interactions: Interactions, dim: int, n_queries: int, seed: int) -> tuple[Vectors, Vectors]:
    """Returns (item vectors (n_items, dim), query vectors (at most n_queries, dim)), all of norm 1."""
    import torch
    from torch.nn import functional

    torch.manual_seed(seed)
    histories, targets = examples(interactions)
    n_items = interactions.n_items
    read = torch.nn.EmbeddingBag(n_items + 1, dim, mode="mean", padding_idx=n_items, sparse=True)
    item_tower = torch.nn.Embedding(n_items, dim, sparse=True)
    user_tower = torch.nn.Sequential(
        torch.nn.Linear(dim, 2 * dim), torch.nn.ReLU(), torch.nn.Linear(2 * dim, dim)
    )
    tables = torch.optim.SparseAdam([*read.parameters(), *item_tower.parameters()], lr=LEARNING_RATE)
    layers = torch.optim.Adam(user_tower.parameters(), lr=LEARNING_RATE)
    share = torch.from_numpy(np.bincount(targets, minlength=n_items) / len(targets))
    log_share = torch.log(share.clamp(min=1e-12)).float()

    def user_vectors(rows: npt.NDArray[np.int64]) -> torch.Tensor:
        return functional.normalize(user_tower(read(torch.from_numpy(histories[rows]))), dim=1)

    rng = np.random.default_rng(seed)
    for _ in range(EPOCHS):
        order = rng.permutation(len(targets))
        for start in range(0, len(order) - BATCH + 1, BATCH):
            rows = order[start : start + BATCH]
            wanted = torch.from_numpy(targets[rows]).long()
            items = functional.normalize(item_tower(wanted), dim=1)
            logits = user_vectors(rows) @ items.T / TEMPERATURE - log_share[wanted]
            loss = functional.cross_entropy(logits, torch.arange(len(rows)))
            tables.zero_grad()
            layers.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            tables.step()  # type: ignore[no-untyped-call]
            layers.step()
    with torch.no_grad():
        rows = rng.permutation(len(targets))[:n_queries]
        queries = torch.cat(
            [user_vectors(part) for part in np.array_split(rows, -(-len(rows) // USERS_AT_ONCE))]
        )
        vectors = functional.normalize(item_tower.weight, dim=1)
    return vectors.numpy(), queries.numpy()


def examples(interactions: Interactions) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    """(histories, targets): the up to HISTORY items before each interaction but a user's first, and it."""
    indptr, items = interactions.by_user()
    place = np.arange(len(items))
    first = np.repeat(indptr[:-1], np.diff(indptr))
    earlier = place[:, None] - np.arange(1, HISTORY + 1)
    padded = np.where(earlier >= first[:, None], items[np.maximum(earlier, 0)], interactions.n_items)
    chosen = place > first
    return padded[chosen].astype(np.int64), items[chosen]
