"""The models that learn: logistic regression by FTRL, and the linear one of LinUCB and Thompson sampling.

Both answer with lifts: by how much more, relatively, an item is clicked than another, near 0. One thread
learns; any thread may ask meanwhile.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from recserve.engine.online.config import FTRL, LINUCB, MAX_LINEAR_SIZE, OnlineConfig
from recserve.engine.online.features import Items, ItemVectors, Numbers
from recserve.engine.online.users import Example
from recserve.errors import ConfigError
from recserve.kernels import ftrl_steps, linear_steps, linear_widths

# McMahan et al. start with it; what matters is its ratio to the square root of the squared gradients.
BETA = 1.0
N_RANKS = 50
# Entries of context × item share these many weights.
CONTEXT_BITS = 18
# Multipliers that spread the hashes (Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators").
SPREAD, MIX = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9)
# No lift is measured against a click rate below this.
MIN_RATE = 1e-3


class Asked(NamedTuple):
    """Who asks: item indices of the user's newest items, and hashes of the context."""

    recent: tuple[int, ...]
    context: tuple[int, ...]


class Head(Protocol):
    """A model. ``arrays()`` is all of its state; :meth:`load` takes what it returned."""

    def learn(self, examples: Sequence[Example]) -> Numbers:
        """Learns from examples in order; returns how much loss each added before that, (n,)."""

    def constant_loss(self, clicked: bool, impressions: float, clicks: float) -> float:
        """Returns what an example adds to the loss of one who knows only how many were clicked so far."""

    def lifts(self, asked: Asked, items: Items) -> Numbers:
        """Returns the lift of each of ``items``, (n,)."""

    def draws(self, asked: Asked, items: Items, noise: Numbers) -> Numbers:
        """Returns lifts, (n_draws, n), for each row of standard normal ``noise``, (n_draws, d + 1).

        Those of :meth:`lifts` where the model is not one to draw from.
        """

    def arrays(self) -> dict[str, NDArray[np.float64]]:
        """Returns copies of the state."""

    def load(self, arrays: dict[str, NDArray[np.float64]]) -> None:
        """Replaces the state."""


class FtrlHead:
    """The probability of a click from item, query ⊙ item, their cosine, item × context, and rank.

    Each impression is learned as not clicked and the click, when it comes, as another example: the odds that
    this learns are the click rate (Ktena et al., "Addressing Delayed Feedback for Continuous Training with
    Neural Networks in CTR prediction", 2019, arXiv:1907.06558), so their logarithm orders items and nothing
    waits. The rank is learned and left out when serving: it says who was looked at, not who is liked.
    """

    def __init__(self, vectors: ItemVectors, config: OnlineConfig) -> None:
        self._vectors, self._config = vectors, config
        # The products of an example are as long as 1: many of them must not outweigh the other features.
        self._scale = vectors.dim**-0.5
        # Features: 1, cosine, ranks, products, items, item × context.
        self._products = 2 + N_RANKS + 1
        self._items = self._products + vectors.dim
        self._context = self._items + vectors.n_items
        n_features = self._context + (1 << CONTEXT_BITS)
        self._state = np.zeros(n_features), np.zeros(n_features)
        # Of the state; written in place, each one at once, while others read.
        self._weights = np.zeros(n_features, np.float32)
        # Compiled, or loaded, before the first request.
        self._steps([], np.empty((0, vectors.dim)))

    def learn(self, examples: Sequence[Example]) -> Numbers:
        """As :meth:`Head.learn`: the logarithmic loss."""
        return self._steps(examples, self._vectors.products_of(examples))

    def constant_loss(self, clicked: bool, impressions: float, clicks: float) -> float:
        """As :meth:`Head.constant_loss`; a click is an example beside its impression."""
        share = (clicks + 1) / (impressions + clicks + 2)
        return -math.log(share if clicked else 1 - share)

    def lifts(self, asked: Asked, items: Items) -> Numbers:
        """As :meth:`Head.lifts`: differences of the logarithm of the odds."""
        weights = self._weights
        query = self._vectors.query(asked.recent)
        total: Numbers = weights[self._items + items].astype(np.float64)
        if asked.recent:
            by_product = weights[self._products : self._items].astype(np.float64) * self._vectors.dim
            total += self._vectors.unit(items) @ (query * (by_product * self._scale + weights[1]))
        for entry in asked.context:
            total += weights[self._crossed(entry, items)]
        return total

    def draws(self, asked: Asked, items: Items, noise: Numbers) -> Numbers:
        """As :meth:`Head.draws`: this model is not one to draw from."""
        return np.tile(self.lifts(asked, items), (len(noise), 1))

    def arrays(self) -> dict[str, NDArray[np.float64]]:
        """As :meth:`Head.arrays`."""
        return {"z": self._state[0].copy(), "n": self._state[1].copy()}

    def load(self, arrays: dict[str, NDArray[np.float64]]) -> None:
        """As :meth:`Head.load`."""
        z, n = self._state
        z[:], n[:] = arrays["z"], arrays["n"]
        config = self._config
        shrunk = np.sign(z) * np.maximum(np.abs(z) - config.l1, 0.0)
        self._weights[:] = -shrunk / ((BETA + np.sqrt(n)) / config.learning_rate + config.l2)

    def _steps(self, examples: Sequence[Example], products: Numbers) -> Numbers:
        indices, values = self._features(examples, products)
        n, width = indices.shape
        config = self._config
        return ftrl_steps(
            self._state,
            self._weights,
            (np.arange(n + 1, dtype=np.int64) * width, indices.ravel()),
            values.ravel(),
            np.array([example.clicked for example in examples], np.bool_),
            alpha=config.learning_rate,
            beta=BETA,
            l1=config.l1,
            l2=config.l2,
        )

    def _features(self, examples: Sequence[Example], products: Numbers) -> tuple[NDArray[np.int32], Numbers]:
        """Returns indices and values, (n, width); a value of 0 is one that teaches nothing."""
        n, first = len(examples), 4 + self._vectors.dim
        width = first + max((len(example.context) for example in examples), default=0)
        indices, values = np.zeros((n, width), np.int32), np.zeros((n, width))
        items = np.array([example.item for example in examples], np.int32)
        indices[:, 1] = 1
        indices[:, 2] = [2 + min(example.rank, N_RANKS) for example in examples]
        indices[:, 3] = self._items + items
        indices[:, 4:first] = np.arange(self._products, self._items)
        values[:, :4] = 1.0
        values[:, 1] = products.mean(axis=1)
        values[:, 4:first] = products * self._scale
        for row, example in enumerate(examples):
            for column, entry in enumerate(example.context, start=first):
                indices[row, column] = self._crossed(entry, items[row : row + 1])[0]
                values[row, column] = 1.0
        return indices, values

    def _crossed(self, entry: int, items: Items) -> NDArray[np.int64]:
        mixed = (np.uint64(entry) ^ (items.astype(np.uint64) * SPREAD)) * MIX
        return np.asarray(self._context + (mixed >> np.uint64(64 - CONTEXT_BITS)).astype(np.int64))


class LinearHead:
    """The click rate as a linear function of query ⊙ item, with what is not known of it.

    LinUCB: an item's score is its mean plus ``width`` deviations. Thompson sampling: scores are drawn from
    the posterior, ``width`` times as wide (Chapelle, Li, "An Empirical Evaluation of Thompson Sampling",
    2011; Agrawal, Goyal, "Thompson Sampling for Contextual Bandits with Linear Payoffs", 2013).
    """

    def __init__(self, vectors: ItemVectors, config: OnlineConfig) -> None:
        self._vectors, self._config = vectors, config
        size = vectors.dim + 1
        if size > MAX_LINEAR_SIZE:
            raise ConfigError(
                f"online.algorithm {config.algorithm}",
                found=f"with item vectors of size {vectors.dim}",
                expected=f"at most {MAX_LINEAR_SIZE - 1}",
                cure=f"Use {FTRL}.",
            )
        self._state = np.eye(size) / config.l2, np.zeros(size)
        # Impressions and clicks, for their rate.
        self._counts = np.zeros(2)
        self._publish()
        linear_widths(self._state[0], np.zeros((1, size)))
        linear_steps(self._state, np.empty((0, size)), np.empty(0, np.bool_))

    def learn(self, examples: Sequence[Example]) -> Numbers:
        """As :meth:`Head.learn`: the squared error."""
        clicked = np.array([example.clicked for example in examples], np.bool_)
        losses = linear_steps(self._state, _with_one(self._vectors.products_of(examples)), clicked)
        self._counts += (~clicked).sum(), clicked.sum()
        self._publish()
        return losses

    def constant_loss(self, clicked: bool, impressions: float, clicks: float) -> float:
        """As :meth:`Head.constant_loss`."""
        rate = (clicks + 1) / (impressions + 2)
        return 1 - 2 * rate if clicked else rate * rate

    def lifts(self, asked: Asked, items: Items) -> Numbers:
        """As :meth:`Head.lifts`, by LinUCB's upper bound or by the mean."""
        features = self._features(asked, items)
        theta, inverse, _, rate = self._published
        scores = features @ theta
        if self._config.algorithm == LINUCB:
            scores += self._config.width * linear_widths(inverse, features)
        return np.asarray(scores / rate)

    def draws(self, asked: Asked, items: Items, noise: Numbers) -> Numbers:
        """As :meth:`Head.draws`."""
        theta, _, root, rate = self._published
        return np.asarray(
            (theta + self._config.width * noise @ root.T) @ self._features(asked, items).T / rate
        )

    def arrays(self) -> dict[str, NDArray[np.float64]]:
        """As :meth:`Head.arrays`."""
        inverse, theta = self._state
        return {"inverse": inverse.copy(), "theta": theta.copy(), "counts": self._counts.copy()}

    def load(self, arrays: dict[str, NDArray[np.float64]]) -> None:
        """As :meth:`Head.load`."""
        inverse, theta = self._state
        inverse[:], theta[:], self._counts[:] = arrays["inverse"], arrays["theta"], arrays["counts"]
        self._publish()

    def _features(self, asked: Asked, items: Items) -> Numbers:
        return _with_one(self._vectors.products(self._vectors.query(asked.recent), items))

    def _publish(self) -> None:
        """Makes what others read: copies, so that nobody sees a step half done."""
        inverse, theta = self._state
        root = np.linalg.cholesky(inverse)
        impressions, clicks = self._counts
        rate = max((clicks + 1) / (impressions + 2), MIN_RATE)
        self._published = theta.copy(), inverse.copy(), root, rate


def _with_one(products: Numbers) -> Numbers:
    return np.concatenate([np.ones((len(products), 1)), products], axis=1)
