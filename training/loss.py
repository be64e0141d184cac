"""The two forms of the softmax cross-entropy over a catalogue."""

import torch
from torch import Tensor
from torch.nn import functional as F

# Above this the score matrix of a batch no longer fits in cache and sampling pays.
FULL_SOFTMAX_MAX_ITEMS = 50_000


def full_softmax(queries: Tensor, item_embeddings: Tensor, targets: Tensor) -> Tensor:
    """Returns the mean cross-entropy of ``targets`` (n,) under softmax(queries · all items)."""
    return F.cross_entropy(queries @ item_embeddings.T, targets)


def sampled_softmax(
    queries: Tensor,
    item_embeddings: Tensor,
    targets: Tensor,
    probabilities: Tensor,
    n_negatives: int,
) -> Tensor:
    """Returns the cross-entropy against ``n_negatives`` sampled items instead of the whole catalogue.

    Negatives are drawn from ``probabilities`` (n_items,) and shared by the batch. Subtracting the logarithm
    of how often each is expected (the logQ correction: Bengio & Senécal 2008, doi:10.1109/TNN.2007.912312;
    Yi et al. 2019, doi:10.1145/3298689.3346996) makes the sum over negatives an unbiased estimate of the
    full one, so that the loss tends to the full softmax; without it popular items are punished for being
    drawn often. The target is always there, hence not corrected, and does not compete with itself.
    """
    negatives = torch.multinomial(probabilities, n_negatives, replacement=True)
    return softmax_over_sample(
        queries,
        item_embeddings[targets],
        item_embeddings[negatives],
        expected=n_negatives * probabilities[negatives],
        same=targets.unsqueeze(1) == negatives.unsqueeze(0),
    )


def softmax_over_sample(
    queries: Tensor, positives: Tensor, negatives: Tensor, *, expected: Tensor, same: Tensor
) -> Tensor:
    """Returns the loss of :func:`sampled_softmax` for negatives drawn already.

    queries, positives: (n, d) · negatives: (m, d) · expected: (m,) how often each is drawn in m draws ·
    same: (n, m) bool, where a negative is the row's target.
    """
    positive = (queries * positives).sum(-1)
    negative = (queries @ negatives.T - torch.log(expected)).masked_fill(same, float("-inf"))
    logits = torch.cat([positive.unsqueeze(1), negative], dim=1)
    return F.cross_entropy(logits, torch.zeros(len(queries), dtype=torch.long, device=logits.device))
