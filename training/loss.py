"""The two forms of the softmax cross-entropy over a catalogue."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

# Above this the score matrix of a batch no longer fits in cache and sampling pays.
FULL_SOFTMAX_MAX_ITEMS = 50_000
# Scores that are alive at once under the full softmax: 4 MB of float32 stay near the core.
SCORES_PER_CHUNK = 1 << 20


def full_softmax(queries: Tensor, item_embeddings: Tensor, targets: Tensor) -> Tensor:
    """Returns the mean cross-entropy of ``targets`` (n,) under softmax(queries · all items)."""
    loss: Tensor = _FullSoftmax.apply(queries, item_embeddings, targets)  # type: ignore[no-untyped-call]
    return loss


class _FullSoftmax(torch.autograd.Function):
    """Scores, probabilities and both gradients, some rows at a time: the score matrix is never whole.

    The scores are what fills memory, so the gradients are taken while a chunk of them is there.
    """

    @staticmethod
    def forward(ctx: Any, queries: Tensor, items: Tensor, targets: Tensor) -> Tensor:
        query_gradient, item_gradient = torch.empty_like(queries), torch.zeros_like(items)
        total = queries.new_zeros((), dtype=torch.float32)
        rows = max(1, SCORES_PER_CHUNK // len(items))
        for start in range(0, len(targets), rows):
            some, wanted = queries[start : start + rows], targets[start : start + rows].unsqueeze(1)
            scores = some @ items.T
            largest = scores.amax(1, keepdim=True)
            total += (largest - scores.gather(1, wanted)).sum()
            probabilities = scores.sub_(largest).exp_()
            sums = probabilities.sum(1, keepdim=True)
            total += sums.log().sum()
            probabilities.div_(sums).scatter_add_(1, wanted, torch.full_like(sums, -1))
            torch.mm(probabilities, items, out=query_gradient[start : start + rows])
            item_gradient.addmm_(probabilities.T, some)
        ctx.save_for_backward(query_gradient.div_(len(targets)), item_gradient.div_(len(targets)))
        return total / len(targets)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        query_gradient, item_gradient = ctx.saved_tensors
        return query_gradient * gradient, item_gradient * gradient, None


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
