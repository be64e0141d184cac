"""Dropout by bytes: the share, the scale, and where it does nothing."""

import pytest
import torch
from torch.func import grad, vmap

from recserve.training.models.dropout import Dropout, dropout


@pytest.mark.parametrize("rate", [0.2, 0.5, 0.9])
def test_a_share_is_dropped_and_the_mean_stays(rate: float) -> None:
    torch.manual_seed(0)
    found = dropout(torch.ones(500, 401), rate, True)
    assert (found == 0).float().mean() == pytest.approx(rate, abs=0.005)
    assert found.mean() == pytest.approx(1, abs=0.03)
    # Neighbours, which share a word, are independent.
    kept = (found > 0).float().flatten()
    assert (kept[1:] * kept[:-1]).mean() == pytest.approx((1 - rate) ** 2, abs=0.005)


def test_the_gradient_is_the_mask() -> None:
    x = torch.ones(100, requires_grad=True)
    found = dropout(x, 0.5, True)
    found.sum().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(x.grad, found.detach())


def test_nothing_is_dropped_outside_of_training_nor_at_rate_0() -> None:
    x = torch.randn(10)
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0)(x) is x
    assert torch.isfinite(dropout(x, 0.999, True)).all()


def test_the_seed_decides_and_users_of_a_private_step_differ() -> None:
    x = torch.ones(4, 64)
    torch.manual_seed(1)
    first = dropout(x, 0.5, True)
    torch.manual_seed(1)
    assert torch.equal(dropout(x, 0.5, True), first)
    each = vmap(grad(lambda row: dropout(row, 0.5, True).sum()), randomness="different")(x)
    assert not torch.equal(each[0], each[1])
