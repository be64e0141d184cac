"""One epoch of DP-SGD: what a model shows of any one user is bounded, whatever else is known.

Abadi et al., "Deep Learning with Differential Privacy", 2016, arXiv:1607.00133, with users as what is
protected: each user is in a step by a coin of their own (Poisson sampling), the gradient of their whole
window is clipped, and Gaussian noise covers the clipped length. Which noise (ε, δ) needs over all epochs
opacus computes (Rényi accountant). Gradients by user come from torch.func: opacus' hooks do not see a table
that is input and output at once. Two data sets are neighbours when one has one user more.
"""

import math
import secrets
import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from recserve.errors import ConfigError, InvalidRequest
from recserve.training.batches import gaps_of, pad
from recserve.training.data import Histories
from recserve.training.loop_config import LoopConfig
from recserve.training.models.content import content_of
from recserve.training.models.sequence import SequenceModel

# Users whose gradients are alive at once: each is as large as the model.
USERS_AT_ONCE = 16


class PrivateLearner:
    """Trains a causal sequence model on ``train``; a checkpoint holds its optimiser's state."""

    def __init__(self, model: SequenceModel, train: Histories, config: LoopConfig) -> None:
        """Raises :class:`InvalidRequest` for a model without gradients by user, :class:`ConfigError` without
        opacus."""
        if not model.has_user_gradients:
            raise InvalidRequest(
                "epsilon", found=f"given with {type(model).__name__}", expected="given with sasrec or hstu"
            )
        if content_of(model) is not None:
            raise InvalidRequest("epsilon", found="given with content", expected="given without")
        self._model, self._train, self._config = model, train, config
        self._rows = np.flatnonzero(train.lengths >= 2)
        self._rate = min(1.0, config.users_per_step(len(self._rows)) / len(self._rows))
        self.noise = noise_for(config, self._rate)
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.98)
        )
        # Of no seed that anybody could know: who knows the noise takes it away.
        self._generator = torch.Generator().manual_seed(secrets.randbits(63))
        self._gradients = vmap(grad(self._loss), in_dims=(None, 0, 0, 0), randomness="different")

    def train_epoch(self, epoch: int) -> float:
        """Takes 1 / rate steps; returns the share of gradients that were clipped (not private)."""
        self._model.train()
        n_clipped = n_users = 0
        for _ in range(math.ceil(1 / self._rate)):
            drawn = torch.rand(len(self._rows), generator=self._generator).numpy() < self._rate
            rows = self._rows[drawn]
            total = {name: torch.zeros_like(value) for name, value in self._parameters().items()}
            for start in range(0, len(rows), USERS_AT_ONCE):
                n_clipped += self._add(total, rows[start : start + USERS_AT_ONCE])
            n_users += len(rows)
            self._step(total)
        return n_clipped / max(1, n_users)

    def _parameters(self) -> dict[str, Tensor]:
        return {name: value.detach() for name, value in self._model.named_parameters()}

    def _add(self, total: dict[str, Tensor], rows: np.ndarray) -> int:
        """Adds the clipped gradients of some users; returns how many were clipped."""
        items, times = pad(self._train, rows, self._model.config.max_history + 1)
        windows = torch.from_numpy(items.astype(np.int64))
        gaps = torch.from_numpy(gaps_of(times[:, :-1], times[:, -1]))
        gradients = self._gradients(self._parameters(), windows[:, :-1], windows[:, 1:], gaps)
        norms = torch.stack([one.flatten(1).norm(dim=1) for one in gradients.values()]).norm(dim=0)
        factors = (self._config.max_norm / norms.clamp(min=1e-12)).clamp(max=1.0)
        for name, value in total.items():
            value += torch.einsum("u,u...->...", factors, gradients[name])
        return int((factors < 1).sum())

    def _step(self, total: dict[str, Tensor]) -> None:
        deviation, expected = self.noise * self._config.max_norm, self._rate * len(self._rows)
        for name, value in self._model.named_parameters():
            noise = torch.randn(value.shape, generator=self._generator) * deviation
            value.grad = (total[name] + noise) / expected
        self.optimizer.step()

    def _loss(self, parameters: dict[str, Tensor], history: Tensor, targets: Tensor, gaps: Tensor) -> Tensor:
        """Returns the mean cross-entropy of one user's window, (length,) each."""
        read = (history, gaps) if self._model.config.time_gaps else (history,)
        hidden = functional_call(self._model, parameters, tuple(one.unsqueeze(0) for one in read))[0]
        scores = hidden @ parameters["item_embeddings"].T
        losses = -F.log_softmax(scores, -1).gather(1, targets.clamp(min=0).unsqueeze(1)).squeeze(1)
        learned = (history >= 0) & (targets >= 0)
        return (losses * learned).sum() / learned.sum().clamp(min=1)


def noise_for(config: LoopConfig, rate: float) -> float:
    """Returns the deviation of the noise, in clipping lengths, that all epochs of ``config`` need."""
    try:
        from opacus.accountants.utils import get_noise_multiplier
    except ImportError as error:
        raise ConfigError(
            "epsilon",
            found="given without opacus",
            expected="an installation with the extra [privacy]",
            cure="Run: pip install 'recserve[train,privacy]'",
        ) from error
    with warnings.catch_warnings():
        # A bound that could be tighter is one.
        warnings.filterwarnings("ignore", "Optimal order", UserWarning)
        return _noise(get_noise_multiplier, config, rate)


def _noise(get_noise_multiplier: Callable[..., float], config: LoopConfig, rate: float) -> float:
    return float(
        get_noise_multiplier(
            target_epsilon=config.epsilon,
            target_delta=config.delta,
            sample_rate=rate,
            steps=config.epochs * math.ceil(1 / rate),
            accountant="rdp",
        )
    )
