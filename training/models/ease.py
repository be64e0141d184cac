"""EASE: a linear model from items to items, solved in one step (Steck 2019, arXiv:1905.03375).

B = argmin ‖X − XB‖² + λ‖B‖² with a zero diagonal, X (n_users, n_items) binary: with P = (XᵀX + λI)⁻¹,
B_ij = −P_ij / P_jj off the diagonal. A user's scores are the sum of the rows of the items in the history.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recserve.errors import InvalidRequest
from recserve.kernels import co_occurrences, count_repeats
from recserve.training.data import EvaluationSet, Histories
from recserve.training.models.base import ONE_EPOCH, Family, FittedModel
from recserve.training.models.interactions import transposed

# The inverse is dense: at this size 3.2 GB in float64, and minutes.
MAX_ITEMS = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class EASEConfig:
    """The settings of EASE."""

    reg: float = 300.0

    def __post_init__(self) -> None:
        if not 0 < self.reg < np.inf:
            raise InvalidRequest("reg", found=self.reg, expected="a number above 0")


class EASE(FittedModel):
    """The weights from each item (row) to each other item (column), (n_items, n_items) float32."""

    weights: Tensor

    def __init__(self, config: EASEConfig, n_users: int, n_items: int) -> None:
        if n_items > MAX_ITEMS:
            raise InvalidRequest(
                "items for ease",
                found=n_items,
                expected=f"at most {MAX_ITEMS:,}",
                cure="Raise --min-item-interactions, or train als or item-knn.",
            )
        super().__init__()
        self.config = config
        self.n_items = n_items
        self.register_buffer("weights", torch.zeros(n_items, n_items))

    def fit_epoch(self, train: Histories, *, epoch: int, seed: int) -> float:
        """Solves for the weights; returns the mean squared error of the training pairs, λ left out."""
        by_user, _ = count_repeats((train.indptr, train.item_index))
        gram = co_occurrences(by_user, transposed(by_user, self.n_items)[0], 0, self.n_items)
        regularised = torch.from_numpy(gram).double()
        regularised.diagonal().add_(self.config.reg)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(regularised))
        inverse /= -inverse.diagonal().clone()
        inverse.fill_diagonal_(0.0)
        self.weights.copy_(inverse)
        # ‖X − XB‖² = tr(G) − 2 tr(GB) + tr(BᵀGB) without the dense X.
        product = torch.from_numpy(gram).double() @ inverse
        error = gram.trace() - 2 * product.diagonal().sum() + (inverse * product).sum()
        return float(error) / max(1, len(by_user[1]))

    def score_rows(self, held_out: EvaluationSet, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Returns the scores (len(rows), n_items) of users whose history is that of ``held_out``."""
        scores = np.zeros((len(rows), self.n_items), np.float32)
        weights = self.weights.numpy()
        for row, out in zip(rows.tolist(), scores, strict=True):
            items = np.unique(held_out.histories.row(row)[0])
            weights[items].sum(axis=0, out=out)
        return scores


FAMILY = Family(settings=EASEConfig, create=EASE, budget=ONE_EPOCH, loop_options=frozenset({"seed"}))
