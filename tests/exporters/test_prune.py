"""Structured pruning: what leaves, what stays, what is taught."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch

from recserve.engine.bundle.item_table import FLOAT32
from recserve.errors import InvalidRequest
from recserve.exporters.candidates import Material
from recserve.exporters.item_tables import save_parts
from recserve.exporters.onnx_graph import export_query_encoder
from recserve.exporters.prune import PruneConfig, _random_prefixes, prune
from recserve.exporters.units import Prunable, given_to_layers, importance, keep_units
from recserve.training.data import EvaluationSet, Histories
from recserve.training.models.bert4rec import BERT4Rec, BERT4RecConfig
from recserve.training.models.hstu import HSTU, HSTUConfig, Layer
from recserve.training.models.sasrec import SASRec, SASRecConfig

HISTORY = torch.from_numpy(np.random.default_rng(1).integers(0, 40, (50, 8)).astype(np.int32))
GAPS = torch.full(HISTORY.shape, 1000.0)


def network(**changes: object) -> SASRec:
    torch.manual_seed(2)
    config = SASRecConfig(**{"embedding_size": 16, "n_heads": 4, "n_blocks": 2, "max_history": 8, **changes})  # type: ignore[arg-type]
    return SASRec(config, n_items=40).eval()


def pointwise() -> HSTU:
    """A network without feed-forwards, whose biases and norms are not what they began as."""
    torch.manual_seed(2)
    config = HSTUConfig(embedding_size=16, n_heads=4, n_blocks=2, max_history=8)
    model = HSTU(config, n_items=40).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 1:
                weight += 0.3 * torch.randn(weight.shape)
    return model


def histories(n_users: int = 60) -> Histories:
    rng = np.random.default_rng(4)
    lengths = rng.integers(2, 12, n_users)
    row = np.repeat(np.arange(n_users), lengths)
    items = rng.integers(0, 40, len(row)).astype(np.int32)
    return Histories.from_sorted(row, items, 1000 * np.arange(len(row), dtype=np.int64), n_users)


@torch.no_grad()
def test_parts_that_add_nothing_leave_without_a_trace() -> None:
    model = network()
    for block in model.blocks:
        block.project.weight[:, 4:8] = 0  # The second of four heads.
        block.feed_forward[3].weight[:, ::2] = 0  # Every second hidden unit.
    with torch.enable_grad():
        smaller = prune(model, histories(), PruneConfig(hidden_share=0.5, head_share=0.75, epochs=0))
    block = smaller.blocks[0]
    assert (block.n_heads, block.qkv.out_features, block.project.in_features) == (3, 36, 12)
    assert block.feed_forward[1].out_features == block.feed_forward[3].in_features == 32
    history = torch.tensor([[-1, -1, 3, 5, 39], [1, 2, 3, 4, 5]])
    torch.testing.assert_close(smaller.encode(history), model.encode(history), atol=1e-5, rtol=0)


@pytest.mark.parametrize("time_gaps", [False, True])
def test_teaching_brings_the_pruned_model_nearer_and_leaves_the_items(time_gaps: bool) -> None:
    model, known = network(time_gaps=time_gaps), histories()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    history = torch.from_numpy(np.random.default_rng(1).integers(0, 40, (50, 8)))
    gaps = torch.full(history.shape, 1000.0) if time_gaps else None

    def error(smaller: SASRec) -> float:
        with torch.no_grad():
            return float((smaller.encode(history, gaps) - model.encode(history, gaps)).square().mean())

    settings = {"hidden_share": 0.25, "head_share": 0.5}
    untaught = prune(model, known, PruneConfig(epochs=0, **settings))  # type: ignore[arg-type]
    taught = prune(model, known, PruneConfig(epochs=30, **settings))  # type: ignore[arg-type]
    assert error(taught) < 0.7 * error(untaught)
    assert torch.equal(taught.item_embeddings, model.item_embeddings)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@torch.no_grad()
def test_queries_of_hstu_that_agree_with_nothing_leave_without_a_trace() -> None:
    model = pointwise()
    layer = cast(Layer, model.layers[0])
    # Every second query of each head is 0 for every item.
    layer.expand.weight[32:48:2], layer.expand.bias[32:48:2] = 0, 0
    given = given_to_layers(model, lambda: model(HISTORY, GAPS))
    smaller = copy.deepcopy(layer)
    keep_units(smaller, importance(layer, given), head_share=1.0, hidden_share=0.5)
    assert (smaller.n_heads, smaller.expand.out_features, smaller.project.in_features) == (4, 32, 8)
    normed = torch.randn(2, 8, 16)
    for newest_only in (False, True):
        gate, value, query, key = layer._expand(normed, newest_only)
        fewer_gates, values, queries, keys = smaller._expand(normed, newest_only)
        torch.testing.assert_close(queries @ keys.transpose(-1, -2), query @ key.transpose(-1, -2))
        # What is left of gates and values are those of the same units.
        kept = [i for i in range(16) if (gate[:, i : i + 1] == fewer_gates).all(0).any()]
        assert len(kept) == 8
        torch.testing.assert_close(
            values, value.transpose(1, 2).flatten(2)[..., kept].view(2, 8, 4, 2).transpose(1, 2)
        )


@pytest.mark.parametrize(
    "shares",
    [
        {"hidden_share": 0.5},
        {"hidden_share": 1, "head_share": 0.5},
        {"hidden_share": 1, "dimension_share": 0.75},
    ],
    ids=["units", "heads", "dimensions"],
)
@pytest.mark.parametrize("build", [network, pointwise])
def test_whatever_leaves_the_rest_learns_it(build: Callable[[], Prunable], shares: dict[str, float]) -> None:
    model = build()
    untaught, taught = (prune(model, histories(), PruneConfig(epochs=n, **shares)) for n in (0, 8))  # type: ignore[arg-type]
    gaps = GAPS if model.config.time_gaps else None
    with torch.no_grad():
        wanted, before, after = (one.encode(HISTORY, gaps) for one in (model, untaught, taught))
    assert (after - wanted).square().mean() < 0.97 * (before - wanted).square().mean()


def test_a_model_that_looks_both_ways_is_taught_on_prefixes() -> None:
    torch.manual_seed(2)
    config = BERT4RecConfig(embedding_size=16, n_heads=4, n_blocks=2, max_history=8)
    model, known = BERT4Rec(config, n_items=40).eval(), histories()
    history = torch.from_numpy(np.random.default_rng(1).integers(0, 40, (50, 8)))

    def error(epochs: int) -> float:
        smaller = prune(model, known, PruneConfig(hidden_share=0.25, head_share=0.5, epochs=epochs))
        assert smaller.blocks[0].n_heads == 2
        with torch.no_grad():
            return float((smaller.encode(history) - model.encode(history)).square().mean())

    assert error(30) < 0.7 * error(0)
    assert len(export_query_encoder(prune(model, known, PruneConfig(epochs=0))).data) > 0


def test_prefixes_are_the_oldest_items_and_never_empty() -> None:
    history = torch.tensor([[-1, -1, 3, 4, 5], [1, 2, 3, 4, 5], [-1, -1, -1, -1, 7]]).repeat(40, 1)
    found = _random_prefixes(history, torch.Generator().manual_seed(0))
    for whole, part in zip(history.tolist(), found.tolist(), strict=True):
        items, kept = ([item for item in row if item >= 0] for row in (whole, part))
        assert kept == items[: len(kept)] != []
        assert part[: len(part) - len(kept)] == [-1] * (len(part) - len(kept))
    assert len({tuple(row) for row in found.tolist()}) == 3 + 5 + 1


def test_the_same_seed_gives_the_same_model() -> None:
    config = PruneConfig(epochs=2)
    first, second = (prune(network(), histories(), config).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("build", [network, pointwise])
def test_a_pruned_model_is_exported_smaller(build: Callable[[], Prunable], tmp_path: Path) -> None:
    model = build()
    shares = PruneConfig(hidden_share=0.5, head_share=0.5, dimension_share=0.75, epochs=0)
    pruned = prune(model, histories(), shares)
    graph = export_query_encoder(pruned)
    assert len(graph.data) < 0.9 * len(export_query_encoder(model).data)
    save_parts(graph.parts, FLOAT32, tmp_path)
    # A length that the exporter did not see, with padding.
    history = torch.where(torch.arange(8) < 3, -1, HISTORY)
    inputs = {"history": history.numpy(), **({"time_gaps": GAPS.numpy()} if model.config.time_gaps else {})}
    with torch.no_grad():
        wanted = pruned.encode(history, GAPS if model.config.time_gaps else None)
    np.testing.assert_allclose(graph.session(tmp_path).run(None, inputs)[0], wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("smaller", "larger", "kept"),
    [(0.5, 0.9, 16), (0.4, 0.5, 32), (0.4, 0.45, 32), (0.4, 0.3, 16)],
    ids=["nothing lost", "lost by the smaller", "lost by both", "the larger is worse"],
)
def test_users_of_validation_choose_how_much_stays(
    smaller: float, larger: float, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {64: 0.5, 16: smaller, 32: larger}
    monkeypatch.setattr(Material, "_ndcg", lambda _, model: found[_width(model)])
    pruning = PruneConfig(hidden_share=0.25, second_share=0.5, epochs=0)
    model = network()
    nobody = cast(EvaluationSet, None)
    material = Material(model, export_query_encoder(model), FLOAT32, nobody, histories(), pruning)
    assert _width(material.taught()) == kept


def _width(model: SASRec) -> int:
    width: int = model.blocks[0].feed_forward[1].out_features
    return width


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"hidden_share": 0}, "hidden_share"),
        ({"second_share": 2}, "second_share"),
        ({"head_share": 1.5}, "head_share"),
        ({"dimension_share": 0}, "dimension_share"),
        ({"epochs": -1}, "epochs"),
    ],
)
def test_shares_out_of_range_are_refused(changes: dict[str, float], name: str) -> None:
    with pytest.raises(InvalidRequest, match=name):
        PruneConfig(**changes)  # type: ignore[arg-type]
