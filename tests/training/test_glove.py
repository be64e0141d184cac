"""GloVe: counts of neighbours, their logarithms learned, and vectors of what stands together."""

import numpy as np
import pytest
import torch

from recserve.errors import InvalidRequest
from recserve.training.models import item2vec
from recserve.training.models.glove import GloVe, GloVeConfig, count_near
from tests.small import assert_two_groups_are_known, histories

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def test_a_pair_counts_by_how_near_it_is() -> None:
    counts = count_near(histories([[0, 1, 2], [1, 0], [2, 2, 0]]), 2, 3)
    found = {(w, n): t for w, n, t in zip(counts.words, counts.neighbours, counts.times, strict=True)}
    once = {(0, 1): 2.0, (1, 2): 1.0, (0, 2): 2.0}
    assert found == pytest.approx({**once, **{(b, a): times for (a, b), times in once.items()}})


def test_counts_of_parts_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    rows = histories([rng.integers(0, 30, rng.integers(1, 9)).tolist() for _ in range(60)])
    whole = count_near(rows, 3, 30)
    monkeypatch.setattr(item2vec, "PAIRED_AT_ONCE", 20)
    assert len(list(item2vec.parts_of(rows))) > 5
    parts = count_near(rows, 3, 30)
    assert np.array_equal(whole.words, parts.words)
    assert np.array_equal(whole.neighbours, parts.neighbours)
    np.testing.assert_allclose(whole.times, parts.times, rtol=1e-6)
    shuffled = list(item2vec.parts_of(rows, rng))
    assert sorted(np.concatenate([part.item_index for part in shuffled])) == sorted(rows.item_index)


def test_what_is_learned_are_the_logarithms_of_the_counts() -> None:
    rng = np.random.default_rng(0)
    popularity = 1 / np.arange(1, 13)
    popularity /= popularity.sum()
    rows = histories([rng.choice(12, 6, replace=False, p=popularity).tolist() for _ in range(200)])
    torch.manual_seed(0)
    model = GloVe(GloVeConfig(embedding_size=12, window=4, learning_rate=0.3, batch_size=64), 200, 12)
    losses = [model.fit_epoch(rows, epoch=epoch, seed=0) for epoch in range(1, 101)]
    assert losses[-1] < losses[0] / 100
    counts = count_near(rows, 4, 12)
    with torch.no_grad():
        found = (model.words @ model.neighbours.T + model.word_biases + model.neighbour_biases.T).numpy()
    logarithms = np.log(counts.times)
    errors = found[counts.words, counts.neighbours] - logarithms
    assert errors.std() < 0.1 * logarithms.std()


def test_what_stands_together_is_alike_and_what_nobody_had_is_nowhere() -> None:
    rng = np.random.default_rng(0)
    # One item in ten is of the other group: pairs across are rare, not absent.
    rows = [(rng.integers(0, 10, 8) + 10 * (user % 2 ^ (rng.random(8) < 0.1))).tolist() for user in range(80)]
    torch.manual_seed(0)
    model = GloVe(GloVeConfig(embedding_size=8, window=5, batch_size=256), 80, 21)
    for epoch in range(1, 31):
        model.fit_epoch(histories(rows), epoch=epoch, seed=0)
    assert_two_groups_are_known(model)


@pytest.mark.parametrize(
    "settings", [{"embedding_size": 0}, {"window": 0}, {"learning_rate": 2.0}, {"batch_size": 0}]
)
def test_wrong_settings_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(InvalidRequest, match=next(iter(settings))):
        GloVeConfig(**settings)  # type: ignore[arg-type]
