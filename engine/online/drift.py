"""Whether a model still predicts better than the mean click rate would."""

from collections.abc import Sequence

import numpy as np

from recserve.engine.online.features import Numbers
from recserve.engine.online.heads import Head
from recserve.engine.online.users import Example

# Of a chunk beside the next one: the window is some ten chunks long.
DECAY = 0.9
# Fewer chunks say little.
MIN_CHUNKS = 8


class Drift:
    """Compares losses before learning, those of the model and of a constant, over the last chunks.

    ``state``: losses of model and constant in the window, then in the chunk that began; impressions and
    clicks so far; chunks in the window; and the losses of the last whole chunk. Sums go number by number, so
    the calls' lengths do not matter.
    """

    def __init__(self, tolerance: float) -> None:
        self._tolerance = tolerance
        self.state = np.zeros(9)

    def add(self, head: Head, examples: Sequence[Example], losses: Numbers) -> None:
        """Counts examples and what the model lost by each."""
        model, constant, impressions, clicks = self.state[2:6].tolist()
        for example, loss in zip(examples, losses.tolist(), strict=True):
            model += loss
            constant += head.constant_loss(example.clicked, impressions, clicks)
            impressions += not example.clicked
            clicks += example.clicked
        self.state[2:6] = model, constant, impressions, clicks

    def end_chunk(self) -> None:
        """Moves the chunk into the window."""
        self.state[:2] = DECAY * self.state[:2] + self.state[2:4]
        self.state[7:9] = self.state[2:4]
        self.state[2:4] = 0.0
        self.state[6] += 1

    @property
    def is_known(self) -> bool:
        """Whether the window is long enough to tell."""
        return bool(self.state[6] >= MIN_CHUNKS)

    @property
    def is_bad(self) -> bool:
        """Whether the model lost more than the constant in the window, beyond the tolerance."""
        return self.is_known and self._is_worse(0)

    @property
    def is_good(self) -> bool:
        """Whether it did not, in the last chunk neither: what a moment made bad is none to go back to."""
        return self.is_known and not self._is_worse(0) and not self._is_worse(7)

    def _is_worse(self, start: int) -> bool:
        model, constant = self.state[start : start + 2]
        return bool(model > constant * (1.0 + self._tolerance))

    def forget(self) -> None:
        """Starts the window anew; the mean click rate stays."""
        self.state[:4] = 0.0
        self.state[6] = 0.0
