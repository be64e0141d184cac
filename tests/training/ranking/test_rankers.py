"""Every ranker: what it computes, that it learns, that a killed run goes on as if nothing had happened."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recserve.errors import DataError, InvalidRequest
from recserve.training.commands import run_config
from recserve.training.data import load_dataset
from recserve.training.evaluate_command import evaluate_run
from recserve.training.loop import Trainer
from recserve.training.models.ranker import Ranker
from recserve.training.ranking.evaluation import calibrate, evaluate_predictions, validation_auc
from recserve.training.ranking.examples import training_examples
from recserve.training.run import Run, create_run, open_run

BY_IDS = ["lr", "fm", "deepfm", "dcn", "dlrm", "din", "neumf"]
RANKERS = [*BY_IDS, "relevance"]
SHOP = "synthetic-shop:n_items=1000,n_users=80,n_events=2000,seed=7"
SMALL: dict[str, Any] = {"embedding_size": 8, "hidden": (16, 8), "max_history": 6, "seed": 3}
MakeRun = Callable[..., Run]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    def make(model: str, name: str = "run", **settings: Any) -> Run:
        config = run_config(model, "temporal", SMALL | settings)
        return create_run(tmp_path / name, config, load_dataset(SHOP))

    return make


def model_of(run: Run) -> Ranker:
    torch.manual_seed(run.config.loop.seed)
    model = run.new_model()
    assert isinstance(model, Ranker)
    return model.eval()


def some_inputs(model: Ranker, n: int = 3) -> tuple[torch.Tensor, ...]:
    # Users and items that training met: the others are all the same to an id.
    users, items = (ids.nonzero()[:, 0] for ids in (model.user_rows[:, 0], model.item_ids))
    history = torch.tensor([[-1, -1, 4, 9], [-1, -1, -1, -1], [1, 2, 3, 4]])[:n]
    context = torch.ones((n, len(model.schema.context)), dtype=torch.int64)
    candidates = items[torch.tensor([[0, 1, 2, 3, 4], [9, 8, 7, 6, 5], [5, 5, 0, 0, 1]])[:n]]
    return (
        torch.where(history < 0, -1, items[history.clamp(min=0)]),
        model.user_rows[users[:n]],
        context,
        candidates,
    )


@pytest.mark.parametrize("name", RANKERS)
def test_a_request_alone_and_in_a_batch_and_by_tables_is_the_same(name: str, make_run: MakeRun) -> None:
    model = model_of(make_run(name))
    with torch.inference_mode():
        history, user, context, candidates = some_inputs(model)
        together = model(history, user, context, candidates)
        assert together.shape == (3, 5, model.n_targets)
        for i in range(3):
            row = slice(i, i + 1)
            alone = model(history[row], user[row], context[row], candidates[row])
            torch.testing.assert_close(alone[0], together[i], atol=1e-5, rtol=1e-4)
        # Padding says nothing.
        shorter = model(history[:1, 2:], user[:1], context[:1], candidates[:1])
        torch.testing.assert_close(shorter[0], together[0], atol=1e-5, rtol=1e-4)
        side = model.user_side(history, user, context)
        items = tuple(table[candidates] for table in model.item_tables())
        torch.testing.assert_close(model.logits(side, items), together, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("crosses", [1, 2, 3])
def test_what_serves_many_candidates_gives_the_same_logits(crosses: int, make_run: MakeRun) -> None:
    model = model_of(make_run("dcn", crosses=crosses))
    for weight in model.parameters():
        # Far from where training starts, where crosses add little.
        torch.nn.init.normal_(weight, std=0.3)
    served = model.for_many_candidates()
    assert (type(served) is type(model)) == (crosses != 2)
    with torch.inference_mode():
        expected = model(*some_inputs(model))
        torch.testing.assert_close(served(*some_inputs(model)), expected, atol=1e-4, rtol=1e-4)
        linear = model.rest(model.user_side(*some_inputs(model)[:3])[2])
        assert (expected - linear).abs().max() > 0.1


@pytest.mark.parametrize("name", BY_IDS)
def test_every_input_has_a_say(name: str, make_run: MakeRun) -> None:
    model = model_of(make_run(name, **({} if name == "neumf" else {"context": True})))
    history, user, context, candidates = some_inputs(model, 1)
    with torch.inference_mode():
        before = model(history, user, context, candidates)
        others = model(history, user, context, candidates.flip(1))
        nobody = model(history, torch.zeros_like(user), context, candidates)
        assert not torch.equal(before, others)
        assert not torch.equal(before, nobody)
        # That of a user whom it does not know, if it takes known ones by their ids alone.
        with_past, whose = (nobody, torch.zeros_like(user)) if name == "neumf" else (before, user)
        no_past = model(torch.full_like(history, -1), whose, context, candidates)
        assert not torch.equal(with_past, no_past)
        if name != "neumf":
            assert not torch.equal(before, model(history, user, torch.zeros_like(context), candidates))


@pytest.mark.parametrize("name", ["lr", "fm", "deepfm", "dcn", "dlrm"])
def test_how_long_a_history_is_says_nothing(name: str, make_run: MakeRun) -> None:
    model = model_of(make_run(name))
    history, user, context, candidates = some_inputs(model, 1)
    with torch.inference_mode():
        once = model(history, user, context, candidates)
        twice = model(torch.cat([history, history], dim=1), user, context, candidates)
    torch.testing.assert_close(twice, once, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", RANKERS)
def test_training_learns_the_labels(name: str, make_run: MakeRun) -> None:
    run = make_run(name, epochs=3, batch_size=256, learning_rate=0.01, labels="ratings", click_at=2.0)
    torch.manual_seed(0)
    model = run.new_model()
    assert isinstance(model, Ranker)
    losses: list[float] = []
    Trainer(model, run.split(), run.folder, run.config.loop).fit(lambda report: losses.append(report.loss))
    assert losses[-1] < losses[0]
    result = evaluate_run(open_run(run.folder))
    metrics = result["model"]["metrics"]
    assert set(metrics) == {"AUC", "GAUC", "logloss", "ECE", "RMSE", "MSE", "MAE"}
    assert metrics["AUC"]["low"] <= metrics["AUC"]["mean"] <= metrics["AUC"]["high"]
    assert metrics["RMSE"]["mean"] ** 2 == pytest.approx(metrics["MSE"]["mean"])
    assert result["protocol"] == "temporal, rated 2 or more is a click"


def test_a_taste_that_can_be_known_is_learned(make_run: MakeRun) -> None:
    """Even items are liked, odd ones are not: a model with item ids must see it."""
    run = make_run("deepfm", epochs=8, batch_size=256, learning_rate=0.02, click_at=2.0)
    split = run.split()
    for part in (split.train, split.validation.targets, split.test.targets):
        part.value[:] = np.where(part.item_index % 2 == 0, 5, 1)
    torch.manual_seed(0)
    config = run.config.shape
    from recserve.training.models import family_of

    create = family_of("deepfm").create_from_data
    assert create is not None
    model = create(config, run.dataset, split)
    assert isinstance(model, Ranker)
    Trainer(model, split, run.folder, run.config.loop).fit()
    assert validation_auc(model, split.validation) > 0.8
    result = evaluate_predictions(model, split, n_bootstrap=0)
    assert result["model"]["metrics"]["AUC"]["mean"] > 0.8
    assert result["model"]["metrics"]["RMSE"]["mean"] < 1.8
    assert calibrate(model, split).method in ("platt", "isotonic")


def test_sampled_labels_rank_the_whole_catalogue(make_run: MakeRun) -> None:
    run = make_run("neumf", epochs=2, batch_size=256, negatives=3)
    torch.manual_seed(1)
    Trainer(run.new_model(), run.split(), run.folder, run.config.loop).fit()
    result = evaluate_run(open_run(run.folder))
    assert result["model"]["metrics"]["NDCG@10"]["mean"] > 0
    assert "full ranking" in result["protocol"]


def test_a_run_that_was_killed_goes_on_to_the_same_weights(make_run: MakeRun) -> None:
    settings = {"epochs": 4, "batch_size": 512, "labels": "ratings", "click_at": 2.0}
    whole, stopped = (make_run("dcn", name, **settings) for name in ("whole", "stopped"))
    torch.manual_seed(3)
    Trainer(whole.new_model(), whole.split(), whole.folder, whole.config.loop).fit()
    torch.manual_seed(3)
    half = run_config("dcn", "temporal", SMALL | settings | {"epochs": 2}).loop
    Trainer(stopped.new_model(), stopped.split(), stopped.folder, half).fit()
    again = Trainer(stopped.new_model(), stopped.split(), stopped.folder, whole.config.loop)
    assert again.resume().epoch == 2
    again.fit()
    for one, other in zip(
        open_run(whole.folder).best_model().parameters(),
        open_run(stopped.folder).best_model().parameters(),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_a_checkpoint_of_other_features_is_refused(make_run: MakeRun) -> None:
    model, other = model_of(make_run("lr")), model_of(make_run("lr", "other", normalisation="log"))
    with pytest.raises(DataError, match="features of the checkpoint"):
        other.load_state_dict(model.state_dict())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"labels": "likes"}, "labels is likes"),
        ({"hidden": (0,)}, "hidden is"),
        ({"unknown_rate": 1.0}, "unknown_rate is 1.0"),
        ({"calibration": "temperature"}, "calibration is temperature"),
        ({"crosses": 0}, "crosses is 0"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        run_config("dcn", "temporal", settings)


def test_din_needs_a_history(make_run: MakeRun) -> None:
    run = make_run("din", max_history=0)
    with pytest.raises(InvalidRequest, match="max_history"):
        run.new_model()


def test_an_order_free_history_is_all_that_the_user_met_but_the_item_itself(make_run: MakeRun) -> None:
    train = make_run("neumf").split().train
    examples = training_examples(train)
    rows = np.arange(len(examples))
    longest = int(train.lengths.max())
    for length in (4, longest):
        found = examples.others(rows, length, np.random.default_rng(0))
        assert found.shape == (len(rows), length)
        for row, items in enumerate(found):
            met, item = train.row(examples.user_index[row])[0], examples.item_index[row]
            assert item not in items
            if length == longest:
                assert sorted(items[items >= 0]) == sorted(met[met != item])
            else:
                assert np.isin(items[items >= 0], met).all()
