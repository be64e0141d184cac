"""The average of weights: what it is, where it is shown, and that a checkpoint keeps it."""

import copy

import pytest
import torch
from torch import nn

from recserve.training.average import EPOCHS, WARM_UP, WeightAverage


def steps(model: nn.Linear, optimizer: torch.optim.Optimizer, average: WeightAverage, n: int) -> torch.Tensor:
    """Makes ``n`` steps and returns the weights after each, (n, size)."""
    after = []
    for _ in range(n):
        optimizer.zero_grad()
        (model(torch.randn(8, 3)) ** 2).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        average.update()
        after.append(model.weight.detach().flatten().clone())
    return torch.stack(after)


@pytest.fixture
def model() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 2)


def test_it_is_the_exponential_average_of_the_weights_after_each_step(model: nn.Linear) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    average = WeightAverage(optimizer, 4)
    weights = steps(model, optimizer, average, 300)
    expected = weights[0]
    for n, weight in enumerate(weights, start=1):
        decay = min(1 - 1 / (4 * EPOCHS), (1 + n) / (WARM_UP + n))
        expected = decay * expected + (1 - decay) * weight
    with average.shown():
        torch.testing.assert_close(model.weight.detach().flatten(), expected)
    torch.testing.assert_close(model.weight.detach().flatten(), weights[-1])


def test_the_state_of_the_optimizer_carries_it_and_an_error_puts_the_weights_back(model: nn.Linear) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    average = WeightAverage(optimizer, 4)
    # Before a step there is nothing else to show.
    before = model.weight.detach().clone()
    with average.shown():
        torch.testing.assert_close(model.weight.detach(), before)
    steps(model, optimizer, average, 5)
    other = copy.deepcopy(model)
    resumed = torch.optim.AdamW(other.parameters(), lr=0.05)
    resumed.load_state_dict(optimizer.state_dict())
    own = model.weight.detach().clone()
    with average.shown(), WeightAverage(resumed, 4).shown():
        assert torch.equal(model.weight, other.weight)
        assert not torch.equal(model.weight, own)
    with pytest.raises(KeyError), average.shown():
        raise KeyError
    assert torch.equal(model.weight, own)
