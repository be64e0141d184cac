"""The model: causality, padding, shapes, losses."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from recserve.engine.features import pad_time_gaps
from recserve.errors import InvalidRequest
from recserve.training import loss
from recserve.training.batches import gaps_of, pad, training_batches
from recserve.training.gradient import _by_length
from recserve.training.loss import full_softmax, sampled_softmax
from recserve.training.models import check_model_name
from recserve.training.models.sasrec import SASRec, SASRecConfig
from tests.small import histories

TOLERANCE = 1e-5


def model(**changes: object) -> SASRec:
    torch.manual_seed(0)
    config = SASRecConfig(**{"embedding_size": 16, "n_heads": 2, "max_history": 10, **changes})  # type: ignore[arg-type]
    return SASRec(config, n_items=30).eval()


@torch.inference_mode()
@pytest.mark.parametrize("time_gaps", [False, True])
def test_a_position_sees_nothing_after_it(time_gaps: bool) -> None:
    history = torch.tensor([[3, 1, 4, 1, 5]])
    changed = torch.tensor([[3, 1, 4, 9, 2]])
    gaps = torch.tensor([[5.0, 50.0, 500.0, 7.0, 1e6]]) if time_gaps else None
    net = model(time_gaps=time_gaps)
    before, after = net(history, gaps), net(changed, gaps)
    torch.testing.assert_close(before[:, :3], after[:, :3], atol=TOLERANCE, rtol=0)
    assert (before[:, 3:] - after[:, 3:]).abs().max() > 0.01


@torch.inference_mode()
@pytest.mark.parametrize("n_blocks", [1, 3])
@pytest.mark.parametrize("time_gaps", [False, True])
def test_the_query_embedding_is_the_last_row(n_blocks: int, time_gaps: bool) -> None:
    net = model(n_blocks=n_blocks, time_gaps=time_gaps)
    history = torch.tensor([[-1, -1, 4, 1, 5], [3, 2, 7, 7, 9], [-1, -1, -1, -1, 8]])
    gaps = torch.full(history.shape, 3600.0) if time_gaps else None
    torch.testing.assert_close(net.encode(history, gaps), net(history, gaps)[:, -1], atol=TOLERANCE, rtol=0)


@torch.inference_mode()
def test_padding_changes_nothing() -> None:
    net = model()
    short = net.encode(torch.tensor([[7, 8, 9]]))
    padded = net.encode(torch.tensor([[-1, -1, -1, -1, 7, 8, 9]]))
    torch.testing.assert_close(short, padded, atol=TOLERANCE, rtol=0)
    assert torch.isfinite(net(torch.full((2, 4), -1))).all()


@torch.inference_mode()
def test_time_gaps_matter_when_they_are_learned() -> None:
    net = model(time_gaps=True)
    with torch.no_grad():
        for block in net.blocks:
            block.gap_bias.normal_()  # type: ignore[union-attr, operator]
    history = torch.tensor([[7, 8, 9]])
    soon, late = net.encode(history, torch.ones(1, 3)), net.encode(history, torch.tensor([[1e6, 1.0, 10.0]]))
    assert (soon - late).abs().max() > 1e-3


def test_a_row_learns_from_every_real_position() -> None:
    [(history, targets, gaps)] = training_batches(
        histories([[1, 2, 3, 4], [5], [6, 7]], 100), max_history=10, batch_size=8, seed=0, epoch=1
    )
    rows = sorted(zip(history.tolist(), targets.tolist(), strict=True), reverse=True)
    assert rows == [([1, 2, 3], [2, 3, 4]), ([-1, -1, 6], [-1, 6, 7])]
    assert gaps.shape == history.shape


def test_epochs_show_all_of_a_long_history_in_order_and_cost_no_more() -> None:
    data = histories([list(range(100)), [100, 101], [102, 103, 104]], 100)
    learned = []
    for epoch in range(1, 60):
        [(history, targets, _)] = training_batches(data, max_history=9, batch_size=8, seed=3, epoch=epoch)
        assert len(history) == 3
        assert ((targets[:, :-1] == history[:, 1:]) | (history[:, 1:] < 0)).all()
        learned.extend(targets[(history >= 0) & (targets >= 0)].tolist())
    times = np.bincount(learned, minlength=105)
    assert set(np.flatnonzero(times == 0)) == {0, 100, 102}  # nothing comes before these
    assert times[91:100].mean() < 3 * times[1:91].mean()  # the newest window is one of eleven


def test_a_padded_row_has_the_newest_items() -> None:
    items, times = pad(histories([[1, 2, 3, 4], [], [5]], 100), np.arange(3), 2)
    assert items.tolist() == [[3, 4], [-1, -1], [-1, 5]]
    assert times.tolist() == [[200, 300], [0, 0], [0, 400]]


def test_processes_share_an_epoch_without_overlap() -> None:
    data = histories([[i, i + 1] for i in range(10)], 100)
    whole = {"max_history": 5, "batch_size": 3, "seed": 1, "epoch": 2}
    parts = [
        [
            row
            for history, _, _ in training_batches(data, **whole, rank=rank, world_size=2)
            for row in history.tolist()
        ]  # type: ignore[arg-type]
        for rank in range(2)
    ]
    alone = [row for history, _, _ in training_batches(data, **whole) for row in history.tolist()]  # type: ignore[arg-type]
    assert len(parts[0]) == len(parts[1])
    assert sorted(parts[0] + parts[1]) == sorted(alone)


def test_training_and_serving_compute_the_same_gaps() -> None:
    times = np.array([[0, 100, 160, 150]], np.int64)
    trained = gaps_of(times, np.array([500]))
    served = pad_time_gaps([times[0, 1:]], 4, 500)
    assert trained.tolist() == served.tolist() == [[0, 60, 0, 350]]


def test_the_chunked_softmax_has_the_loss_and_the_gradients_of_the_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loss, "SCORES_PER_CHUNK", 100)  # two rows of 40 items at a time
    torch.manual_seed(0)
    queries, items = torch.randn(7, 8, requires_grad=True), torch.randn(40, 8, requires_grad=True)
    targets = torch.tensor([0, 39, 5, 5, 5, 17, 2])
    expected = F.cross_entropy(queries @ items.T, targets)
    whole = torch.autograd.grad(3 * expected, [queries, items])
    found = full_softmax(queries, items, targets)
    torch.testing.assert_close(found, expected, atol=0, rtol=1e-6)
    for ours, theirs in zip(torch.autograd.grad(3 * found, [queries, items]), whole, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


def test_histories_are_computed_with_others_of_like_length() -> None:
    lengths = [1, 50, 4, 5, 8, 9, 33, 2]
    history = torch.full((len(lengths), 50), -1)
    for row, length in zip(history, lengths, strict=True):
        row[50 - length :] = 1
    groups = [(sorted(lengths[row] for row in rows), longest) for rows, longest in _by_length(history)]
    assert groups == [([1, 2, 4], 4), ([5, 8], 8), ([9], 9), ([33, 50], 50)]


def test_sampled_softmax_tends_to_the_full_one() -> None:
    torch.manual_seed(0)
    queries, items = torch.randn(6, 8), torch.randn(40, 8)
    targets = torch.arange(6)
    probabilities = torch.softmax(torch.randn(40), 0)
    full = full_softmax(queries, items, targets)
    sampled = sampled_softmax(queries, items, targets, probabilities, 200_000)
    assert float(sampled) == pytest.approx(float(full), abs=0.02)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"embedding_size": 15}, "embedding_size"),
        ({"n_blocks": 0}, "n_blocks"),
        ({"dropout": 1.0}, "dropout"),
        ({"max_history": 0}, "max_history"),
    ],
)
def test_wrong_shapes_are_refused(changes: dict[str, object], name: str) -> None:
    with pytest.raises(InvalidRequest, match=name):
        model(**changes)


def test_unknown_models_are_refused_with_the_nearest_name() -> None:
    with pytest.raises(InvalidRequest, match="Did you mean 'sasrec'"):
        check_model_name("sasrek")
