"""The laws of every family that encodes a history: causality, padding, batches, export, learning."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recserve.engine.bundle import layout
from recserve.engine.bundle.item_table import FLOAT32
from recserve.errors import InvalidRequest
from recserve.exporters.item_tables import save_parts
from recserve.exporters.onnx_graph import export_incremental_encoder, export_query_encoder
from recserve.exporters.parity import MAX_ABS_ERROR
from recserve.training.data import EvaluationSet, Histories, Split
from recserve.training.evaluate import evaluate, model_scorer
from recserve.training.loop import Trainer
from recserve.training.loop_config import LoopConfig
from recserve.training.models import family_of
from recserve.training.models.hstu import SIZES, HSTUConfig, time_buckets
from recserve.training.models.incremental import IncrementalModel
from recserve.training.models.sequence import SequenceModel

N_ITEMS, LONGEST = 30, 9
SMALL = {"embedding_size": 16, "max_history": LONGEST}
FORMS: dict[str, dict[str, int]] = {
    "sasrec": {"n_heads": 2},
    "sasrec with gaps": {"n_heads": 2, "time_gaps": True},
    "gru4rec": {"hidden_size": 24, "n_blocks": 2},
    "bert4rec": {"n_heads": 2},
    "hstu": {"time_gaps": False},
    "hstu with gaps": {"time_gaps": True},
}
CAUSAL = sorted(FORMS.keys() - {"bert4rec"})
TOLERANCE = 1e-5


def model(form: str, **more: int) -> SequenceModel:
    torch.manual_seed(0)
    family = family_of(form.split()[0])
    net = family.create(family.settings(**{**SMALL, **FORMS[form], **more}), 1, N_ITEMS).eval()
    assert isinstance(net, SequenceModel)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            # Biases start at zero and would hide what reads them.
            if name.endswith("_bias"):
                parameter.normal_()
    return net


def inputs(net: SequenceModel, *rows: list[int]) -> tuple[torch.Tensor, torch.Tensor | None]:
    history = torch.tensor(rows)
    rng = torch.Generator().manual_seed(3)
    gaps = torch.rand(history.shape, generator=rng).mul(20).exp().floor() * (history >= 0)
    return history, gaps if net.config.time_gaps else None


@torch.inference_mode()
@pytest.mark.parametrize("form", CAUSAL)
def test_a_position_sees_nothing_after_it(form: str) -> None:
    net = model(form)
    before = net(*inputs(net, [3, 1, 4, 1, 5]))
    after = net(*inputs(net, [3, 1, 4, 9, 2]))
    torch.testing.assert_close(before[:, :3], after[:, :3], atol=TOLERANCE, rtol=0)
    assert (before[:, 3:] - after[:, 3:]).abs().max() > 0.01


@torch.inference_mode()
def test_bert4rec_sees_both_sides_and_not_what_is_hidden() -> None:
    net = model("bert4rec")
    items = torch.tensor([[3, 1, 4, 1, 5], [3, 1, 7, 1, 5]])
    hidden = torch.tensor([[False, False, True, False, False]] * 2)
    restored = net._restore(items, hidden)  # type: ignore[operator]
    torch.testing.assert_close(restored[0], restored[1], atol=TOLERANCE, rtol=0)
    items[1, 4] = 6
    assert (restored[0, 2] - net._restore(items, hidden)[1, 2]).abs().max() > 1e-3  # type: ignore[operator]


@torch.inference_mode()
@pytest.mark.parametrize("form", FORMS)
def test_padding_changes_nothing(form: str) -> None:
    net = model(form)
    history, gaps = inputs(net, [7, 8, 9])
    padding = torch.full((1, 4), -1)
    padded = torch.cat([padding, history], dim=1)
    padded_gaps = None if gaps is None else torch.cat([torch.zeros(1, 4), gaps], dim=1)
    torch.testing.assert_close(
        net.encode(history, gaps), net.encode(padded, padded_gaps), atol=TOLERANCE, rtol=0
    )
    assert torch.isfinite(net.encode(*inputs(net, [-1] * 4, [-1] * 4))).all()


@torch.inference_mode()
@pytest.mark.parametrize("form", [form for form in FORMS if not form.startswith("gru")])
def test_the_newest_row_alone_is_the_last_of_all(form: str) -> None:
    net = model(form)
    history, gaps = inputs(net, [1, 2, 3, 4], [-1, -1, 5, 6])
    torch.testing.assert_close(net.encode(history, gaps), net(history, gaps)[:, -1], atol=TOLERANCE, rtol=0)


@torch.inference_mode()
@pytest.mark.parametrize("form", [form for form in CAUSAL if not form.startswith("gru")])
def test_new_items_beside_what_was_computed_are_encoded_as_all_at_once(form: str) -> None:
    net = model(form, incremental=True)
    assert isinstance(net, IncrementalModel)
    history, gaps = inputs(net, [3, 1, 4, 1, 5, 9, 2])
    padding = torch.full((1, 2), -1)
    padded_gaps = None if gaps is None else torch.cat([torch.zeros(1, 2), gaps], dim=1)
    expected = net.encode(torch.cat([padding, history], dim=1), padded_gaps)
    past = list(torch.zeros(net.past_shape(0)))
    for known, until in ((0, 3), (2, 4), (3, 7)):
        past = [part[:known] for part in past]
        query, computed = net.encode_new(
            history[0, known:until], past, None if gaps is None else gaps[0, :until]
        )
        past = [torch.cat(pair) for pair in zip(past, computed, strict=True)]
    torch.testing.assert_close(query, expected, atol=TOLERANCE, rtol=0)
    other = net.encode(history.flip(1), None if gaps is None else gaps.flip(1))
    assert (other - expected).abs().max() > 0.01


@torch.inference_mode()
@pytest.mark.parametrize("form", FORMS)
def test_a_row_alone_is_encoded_as_in_a_batch(form: str) -> None:
    net = model(form)
    history, gaps = inputs(net, [1, 2, 3, 4], [-1, -1, 5, 6], [-1, 7, 8, 7])
    together = net.encode(history, gaps)
    for row in range(3):
        alone = net.encode(history[row : row + 1], None if gaps is None else gaps[row : row + 1])
        torch.testing.assert_close(alone[0], together[row], atol=TOLERANCE, rtol=0)


@torch.inference_mode()
@pytest.mark.parametrize("form", [form for form in FORMS if form.endswith("gaps")])
def test_time_matters_where_it_is_read(form: str) -> None:
    net = model(form)
    history = torch.tensor([[7, 8, 9]])
    soon, late = net.encode(history, torch.ones(1, 3)), net.encode(history, torch.tensor([[1e6, 1.0, 1e4]]))
    assert (soon - late).abs().max() > 1e-3


# SASRec's graph has its tests with the exporter.
@pytest.mark.parametrize("form", [form for form in FORMS if not form.startswith("sasrec")])
def test_the_exported_graph_agrees_with_torch_for_any_batch_and_length(form: str, tmp_path: Path) -> None:
    net = model(form)
    graph = export_query_encoder(net)
    np.save(tmp_path / layout.ITEM_EMBEDDINGS, graph.item_embeddings)
    session = graph.session(tmp_path)
    rng = np.random.default_rng(1)
    for batch, length in ((1, 1), (1, LONGEST), (3, 4), (17, LONGEST)):
        history = rng.integers(0, N_ITEMS, (batch, length)).astype(np.int32)
        for row in history[1:]:
            row[: rng.integers(0, length)] = -1
        gaps = np.floor(rng.exponential(1e6, (batch, length))).astype(np.float32)
        feed = {layout.HISTORY_INPUT: history}
        feed |= {layout.TIME_GAPS_INPUT: gaps} if net.config.time_gaps else {}
        [found] = session.run([layout.QUERY_EMBEDDING_OUTPUT], feed)
        with torch.inference_mode():
            expected = net.encode(
                torch.from_numpy(history), torch.from_numpy(gaps) if net.config.time_gaps else None
            )
        assert np.abs(found - expected.numpy()).max() <= MAX_ABS_ERROR


def cycles(n_users: int, length: int) -> Split:
    """Users who walk a ring of items from anywhere: the next item is the last one plus 7."""
    rng = np.random.default_rng(0)
    items = (rng.integers(0, N_ITEMS, (n_users, 1)) + 7 * np.arange(length)) % N_ITEMS
    row, times = np.repeat(np.arange(n_users), length), np.tile(np.arange(length) * 60, n_users)
    whole = Histories.from_sorted(row, items.ravel().astype(np.int32), times, n_users)
    ends = whole.indptr[1:]
    users = np.arange(n_users, dtype=np.int32)

    def last_but(n: int) -> EvaluationSet:
        return EvaluationSet(
            users,
            whole.gather(whole.indptr[:-1], ends - n - 1),
            whole.gather(ends - n - 1, ends - n),
        )

    return Split(whole.gather(whole.indptr[:-1], ends - 2), last_but(1), last_but(0))


@pytest.mark.parametrize("form", FORMS)
def test_every_family_learns_a_planted_pattern(form: str, tmp_path: Path) -> None:
    split = cycles(n_users=120, length=7)
    net = model(form)
    config = LoopConfig(epochs=60, batch_size=30, learning_rate=1e-2, validate_every=20, patience=3)
    Trainer(net, split, tmp_path, config).fit()
    scorer = model_scorer(net, split.test, np.ones(N_ITEMS, np.int64))
    found = evaluate(scorer, split.test, N_ITEMS, n_bootstrap=0)
    assert found.metrics["HR@5"].mean > 0.95


def test_the_time_between_an_item_and_a_question_is_a_sum_of_gaps() -> None:
    buckets = time_buckets(torch.tensor([[0.0, 2.0, 100.0]]))
    apart = [[0, 0, 0], [2, 2, 0], [102, 102, 100]]
    expected = np.floor(np.log1p(apart))
    # What lies in the future is masked, whatever its bucket.
    assert np.array_equal(np.tril(buckets[0].numpy()), np.tril(expected))


def test_a_size_is_a_shape_and_what_is_given_goes_first() -> None:
    for size, shape in SIZES.items():
        config = HSTUConfig(size=size)
        assert {name: getattr(config, name) for name in shape} == shape
    assert HSTUConfig(size="large", n_blocks=3).n_blocks == 3


@pytest.mark.parametrize(
    ("form", "changes", "name"),
    [
        ("hstu", {"size": "huge"}, "size"),
        ("hstu", {"n_heads": 3}, "embedding_size"),
        ("sasrec", {"incremental": True, "max_history": 3}, "max_history"),
        ("bert4rec", {"mask_rate": 1.0}, "mask_rate"),
        ("gru4rec", {"hidden_size": 0}, "hidden_size"),
        ("gru4rec", {"dropout": 1.0}, "dropout"),
    ],
)
def test_wrong_shapes_are_refused(form: str, changes: dict[str, object], name: str) -> None:
    with pytest.raises(InvalidRequest, match=name):
        family_of(form).settings(**changes)


@torch.inference_mode()
def test_the_second_graph_of_a_short_history_encodes_it_in_two_steps(tmp_path: Path) -> None:
    net = model("hstu with gaps", max_history=4, incremental=True)
    assert isinstance(net, IncrementalModel)
    history, gaps = inputs(net, [3, 1, 4, 5])
    assert gaps is not None
    graph = export_incremental_encoder(net)
    save_parts(graph.parts, FLOAT32, tmp_path)
    session = graph.session(tmp_path, without=layout.UNSAFE_OF_NOTHING)
    past = np.zeros(net.past_shape(0), np.float32)
    query = np.empty(0)
    for known, until in ((0, 2), (2, 4)):
        items = history[0, known:until].numpy().astype(np.int32)
        fed: dict[str, Any] = {f"{layout.PAST_INPUT}{i}": part for i, part in enumerate(past)}
        fed |= {layout.HISTORY_INPUT: items, layout.TIME_GAPS_INPUT: gaps[0, :until].numpy()}
        query, past = session.run([layout.QUERY_EMBEDDING_OUTPUT, layout.NEW_OUTPUT], fed)
    np.testing.assert_allclose(query, net.encode(history, gaps), atol=TOLERANCE, rtol=0)
