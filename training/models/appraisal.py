"""What the ratings of a history say: how kind the user is, and how much items like the candidate were liked.

A rating counts by its distance from the mean of its item. The user's kindness is the mean of these, pulled to
0; what is left of each, times the vector of its item and summed over √n, is the user's taste: a factorised
model of neighbours (asymmetric SVD, Koren 2008, doi:10.1145/1401890.1401944, with one table for both sides),
so that a user whom training never saw has one after the first rating.
"""

import torch
from torch import Tensor, nn

from recserve.training.ranking.examples import Labels

# Ratings of mean kindness that every user is taken to have given.
PRIOR_RATINGS = 5.0
# Where learning begins: who rates one standard deviation above others is expected to go on so. A rating is
# in standard deviations, and a logistic curve is 1.7 times as wide as the normal one.
KINDNESS = (1.7, 1.0)
INIT_STD = 0.05

Side = tuple[Tensor, ...]


class Appraisal(nn.Module):
    """Adds to the logits of a ranker; ``size`` 0: kindness alone.

    ``item_values``: (n_items,) float32, the mean value of each item in training; an id is the index + 1.
    """

    means: Tensor

    def __init__(self, item_values: Tensor, labels: Labels, size: int) -> None:
        super().__init__()
        # Of an item that training does not know: the mean of all ratings.
        means = torch.cat([torch.tensor([labels.mean]), item_values])
        self.register_buffer("means", means.float(), persistent=False)
        self.std, self.low, self.high = labels.std, labels.low, labels.high
        n_targets = len(labels.targets)
        self.kindness = nn.Parameter(torch.tensor(KINDNESS))
        self.has_taste = size > 0
        if self.has_taste:
            self.vectors = nn.Embedding(len(means), size)
            nn.init.normal_(self.vectors.weight, std=INIT_STD)
            # Where training never meets the unknown, it says nothing.
            nn.init.zeros_(self.vectors.weight[0])
            self.weights = nn.Parameter(torch.ones(n_targets))

    def user(self, history: Tensor, values: Tensor) -> Side:
        """Returns the logits of kindness (batch, 1, n_targets) and, where it has one, taste (batch, 1, size).

        ``history``: (batch, length) ids; ``values``: (batch, length) float32, NaN where none is known.
        """
        rated = ~torch.isnan(values)
        # A rating beyond the scale of training counts as the end of the scale.
        distance = (values.clamp(self.low, self.high) - self.means[history]) / self.std
        distance = torch.where(rated, distance, 0.0)
        n = rated.sum(dim=1, keepdim=True) + PRIOR_RATINGS
        mean = distance.sum(dim=1, keepdim=True) / n
        kind = (mean * self.kindness).unsqueeze(1)
        if not self.has_taste:
            return (kind,)
        left = torch.where(rated, distance - mean, 0.0) / n.sqrt()
        return kind, left.unsqueeze(1) @ self.vectors(history)

    def item(self, ids: Tensor) -> Side:
        """Returns the vectors (*S, size) of ids of shape S, nothing where there is no taste."""
        return (self.vectors(ids),) if self.has_taste else ()

    def forward(self, user: Side, item: Side) -> Tensor:
        """Returns what is added to the logits: (batch, n_candidates or 1, n_targets)."""
        kind, *taste = user
        if not taste:
            return kind
        return kind + item[0] @ (taste[0].transpose(1, 2) * self.weights)
