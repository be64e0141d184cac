"""The average of a model's weights over the newest epochs, which is what is validated, kept and served.

Polyak & Juditsky 1992 (doi:10.1137/0330046), as an exponential average. Steps go on from the weights
themselves; their noise is averaged out, so that a good epoch is less a matter of luck.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

# What an average reaches back, in epochs.
EPOCHS = 5
# A young average forgets faster: after n steps it keeps (1 + n) / (WARM_UP + n).
WARM_UP = 10
AVERAGE, STEP = "average", "step"


class WeightAverage:
    """Averages the parameters of ``optimizer`` and keeps them in its state, hence in checkpoints."""

    def __init__(self, optimizer: torch.optim.Optimizer, steps_per_epoch: int) -> None:
        self._optimizer = optimizer
        self._decay = 1 - 1 / max(2, EPOCHS * steps_per_epoch)

    def update(self) -> None:
        """Takes the weights in after a step."""
        values = self._learned()
        state = self._optimizer.state
        for value in values:
            state[value].setdefault(AVERAGE, value.detach().clone())
        if values:
            n = float(state[values[0]][STEP])
            decay = min(self._decay, (1 + n) / (WARM_UP + n))
            averages = [state[value][AVERAGE] for value in values]
            torch._foreach_lerp_(averages, [value.detach() for value in values], 1 - decay)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Has the model hold the average meanwhile."""
        values = [value for value in self._learned() if AVERAGE in self._optimizer.state[value]]
        own = [value.data for value in values]
        try:
            for value in values:
                value.data = self._optimizer.state[value][AVERAGE]
            yield
        finally:
            for value, data in zip(values, own, strict=True):
                value.data = data

    def _learned(self) -> list[Tensor]:
        """Returns the parameters that the optimiser has stepped."""
        groups = self._optimizer.param_groups
        return [
            value for group in groups for value in group["params"] if STEP in self._optimizer.state[value]
        ]
