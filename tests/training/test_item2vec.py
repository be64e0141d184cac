"""Item2Vec: pairs of neighbours, their loss, and vectors of what stands together."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from recserve.errors import InvalidRequest
from recserve.training.commands import run_config
from recserve.training.data import load_dataset
from recserve.training.loop import LAST, Trainer
from recserve.training.models.item2vec import Item2Vec, Item2VecConfig, neighbour_pairs
from recserve.training.run import create_run
from tests.small import assert_two_groups_are_known, histories

SHOP = "synthetic-shop:n_items=1000,n_users=300,n_events=9000,seed=5"


pytestmark = pytest.mark.usefixtures("one_torch_thread")


def test_pairs_are_neighbours_of_one_history_both_ways() -> None:
    words, neighbours = neighbour_pairs(histories([[0, 1, 2, 3], [4, 4, 5], [6]]), window=2)
    found = sorted(zip(words.tolist(), neighbours.tolist(), strict=True))
    once = [(0, 1), (1, 2), (2, 3), (0, 2), (1, 3), (4, 5), (4, 5)]
    assert found == sorted([*once, *((b, a) for a, b in once)])


def test_what_stands_together_is_alike_and_what_nobody_had_is_nowhere() -> None:
    rng = np.random.default_rng(0)
    rows = [(rng.choice(10, 6, replace=False) + 10 * (user % 2)).tolist() for user in range(60)]
    config = Item2VecConfig(embedding_size=8, window=5, learning_rate=0.05, batch_size=256)
    torch.manual_seed(0)
    model = Item2Vec(config, 60, 21)
    losses = [model.fit_epoch(histories(rows), epoch=epoch, seed=0) for epoch in range(1, 16)]
    assert losses[-1] < losses[0]
    assert_two_groups_are_known(model)


@pytest.mark.parametrize("model", ["item2vec", "glove"])
def test_a_resumed_run_equals_an_uninterrupted_one(model: str, tmp_path: Path) -> None:
    weights = []
    for stops in ([4], [2, 4]):
        config = run_config(model, "random", {"embedding_size": 8, "epochs": 4, "validate_every": 1})
        run = create_run(tmp_path / str(len(stops)), config, load_dataset(SHOP))
        for epochs in stops:
            loop = run_config(model, "random", {"epochs": epochs, "validate_every": 1}).loop
            torch.manual_seed(0)
            trainer = Trainer(run.new_model(), run.split(), run.folder, loop)
            trainer.resume()
            trainer.fit()
        weights.append(load_file(run.folder / LAST))
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


@pytest.mark.parametrize(
    "settings",
    [{"embedding_size": 0}, {"window": 0}, {"learning_rate": 2.0}, {"batch_size": 0}, {"n_negatives": 0}],
)
def test_wrong_settings_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(InvalidRequest, match=next(iter(settings))):
        Item2VecConfig(**settings)  # type: ignore[arg-type]
