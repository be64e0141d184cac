"""What the ratings of a history say, against the formula written out."""

import numpy as np
import pytest
import torch

from recserve.training.models.appraisal import PRIOR_RATINGS, Appraisal
from recserve.training.ranking.examples import Labels

LABELS = Labels(is_rated=True, click_at=4.0, mean=3.0, std=2.0, low=1.0, high=5.0)
MEANS = torch.tensor([2.0, 3.0, 4.5])
NAN = float("nan")
HISTORY = torch.tensor([[0, 1, 3, 2], [0, 0, 0, 0]])
VALUES = torch.tensor([[NAN, 4.0, 5.0, NAN], [NAN, NAN, NAN, NAN]])


@pytest.fixture
def appraisal() -> Appraisal:
    torch.manual_seed(1)
    return Appraisal(MEANS, LABELS, 4)


def said(model: Appraisal, history: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model(model.user(history, values), model.item(torch.tensor([[1, 2, 3]])))  # type: ignore[no-any-return]


def test_it_is_the_formula(appraisal: Appraisal) -> None:
    distance = np.array([(4 - 2.0) / 2, (5 - 4.5) / 2])
    n = 2 + PRIOR_RATINGS
    kindness = distance.sum() / n
    vectors = appraisal.vectors.weight.detach().numpy()
    taste = ((distance - kindness)[:, None] * vectors[[1, 3]]).sum(0) / np.sqrt(n)
    expected = kindness * np.array([1.7, 1.0]) + (vectors[1:4] @ taste)[:, None]
    np.testing.assert_allclose(said(appraisal, HISTORY, VALUES)[0], expected, atol=1e-6)


def test_who_rated_nothing_has_nothing_to_say(appraisal: Appraisal) -> None:
    assert not said(appraisal, HISTORY, VALUES)[1].any()


def test_padding_and_what_was_not_rated_say_nothing(appraisal: Appraisal) -> None:
    shorter = said(appraisal, HISTORY[:1, 1:3], VALUES[:1, 1:3])
    torch.testing.assert_close(said(appraisal, HISTORY, VALUES)[:1], shorter)


def test_a_rating_beyond_the_scale_is_its_end(appraisal: Appraisal) -> None:
    beyond = torch.tensor([[NAN, float("inf"), 5.0, -3e38]])
    ends = torch.tensor([[NAN, 5.0, 5.0, 1.0]])
    torch.testing.assert_close(said(appraisal, HISTORY[:1], beyond), said(appraisal, HISTORY[:1], ends))


def test_without_a_size_it_is_kindness_alone() -> None:
    found = said(Appraisal(MEANS, LABELS, 0), HISTORY, VALUES)
    assert found.shape == (2, 1, 2)
    assert found[0, 0, 0] == pytest.approx(1.7 * (1 + 0.25) / (2 + PRIOR_RATINGS))
