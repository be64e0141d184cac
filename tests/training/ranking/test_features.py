"""Scales, vocabularies and examples: fitted on training data, without a look at what comes later."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recserve.errors import DataError, InvalidRequest
from recserve.training.data import CleaningReport, Dataset, Histories, temporal_split
from recserve.training.ranking.examples import held_out_examples, labels_of, training_examples
from recserve.training.ranking.normalise import METHODS, Normaliser
from recserve.training.ranking.space import Bins, Category, fit_space, moments, user_indices

NUMBERS = st.lists(st.floats(-1e6, 1e6) | st.just(float("nan")), min_size=1, max_size=50)


@settings(derandomize=True, deadline=None)
@given(NUMBERS, st.sampled_from(METHODS))
def test_a_scale_is_finite_and_keeps_the_order(values: list[float], method: str) -> None:
    array = np.array(values)
    scaled = Normaliser.fit(array, method).apply(array)
    assert np.isfinite(scaled).all()
    known = ~np.isnan(array)
    in_order = scaled[known][np.argsort(array[known], kind="stable")]
    assert (np.diff(in_order) >= -1e-6).all()
    if method in ("min-max", "quantile"):
        assert ((scaled >= 0) & (scaled <= 1)).all()


def test_scales_by_hand() -> None:
    values = np.array([0.0, 1.0, 3.0, np.nan])
    assert Normaliser.fit(values, "min-max").apply(np.array([1.5, 9.0])).tolist() == [0.5, 1.0]
    z = Normaliser.fit(values, "z-score").apply(values)
    assert z[:3].mean() == pytest.approx(0, abs=1e-6)
    assert z[:3].std() == pytest.approx(1)
    assert z[3] == 0
    log = Normaliser.fit(values, "log").apply(np.array([1.0]))
    assert log[0] == pytest.approx((np.log(2) - np.log([1, 2, 4]).mean()) / np.log([1, 2, 4]).std())
    assert Normaliser.fit(values, "quantile").apply(np.array([-1.0, 1.0, 9.0])).tolist() == [0.0, 0.5, 1.0]
    assert Normaliser.fit(np.full(3, 7.0), "quantile").apply(np.array([7.0, 8.0])).tolist() == [0.0, 0.0]
    with pytest.raises(InvalidRequest, match="normalisation is"):
        Normaliser.fit(values, "max")
    with pytest.raises(DataError, match="infinite"):
        Normaliser.fit(np.array([np.inf]), "log")


def shop() -> Dataset:
    """Five users, six items; item 5 and user 4 appear at the end only."""
    user = np.array([0, 0, 1, 1, 2, 2, 3, 3, 0, 1, 4, 4], np.int32)
    item = np.array([0, 1, 1, 2, 2, 3, 3, 4, 2, 3, 5, 0], np.int32)
    return Dataset.create(
        "shop",
        pl.DataFrame(
            {
                "user_index": user,
                "item_index": item,
                "timestamp": np.arange(12, dtype=np.int64) * 3600,
                "value": np.array([5, 1, 4, 2, 5, 1, 4, 2, 5, 1, 5, 1], np.float32),
            }
        ),
        pl.DataFrame(
            {"user_id": list("abcde"), "age": [20, 30, None, 50, 60], "plan": ["x", "x", "y", "y", "z"]}
        ),
        pl.DataFrame(
            {
                "item_id": list("ABCDEF"),
                "title": ["t"] * 6,
                "genres": [["p", "q"], ["p"], ["q"], ["p"], None, ["r"]],
                "price": [1.0, 2.0, 3.0, None, 5.0, 99.0],
            }
        ),
        report=CleaningReport(rows_read=12, kept=12),
        source="test",
    )


def test_features_come_from_training_alone() -> None:
    dataset = shop()
    split = temporal_split(dataset, 0.15, 0.15)
    space = fit_space(dataset, split, context=True, normalisation="min-max")
    schema = space.schema
    plan = next(feature for feature in schema.users if feature.name == "plan")
    assert isinstance(plan, Category)
    # "z" is the plan of the user of the test part.
    assert set(plan.values) == {"x", "y"}
    assert space.user_rows[4].tolist() == [0, space.user_rows[4][1], 0]
    assert space.item_ids.tolist() == [1, 2, 3, 4, 5, 0]
    assert schema.lists[0].values == ("p", "q")
    assert space.item_lists[5].sum() == 0
    assert [number.name for number in schema.numbers] == ["price", "popularity"]
    assert schema.numbers[0].normaliser.parameters == (1.0, 5.0)
    assert space.item_numbers[:, 0].tolist() == [0.0, 0.25, 0.5, 0.0, 1.0, 1.0]
    assert "title" not in [feature.name for feature in schema.categories]
    assert fit_space(dataset, split, context=False, normalisation="log").schema.context == ()


def test_bins_and_the_unknown() -> None:
    bins = Bins("age", (20.0, 40.0))
    assert user_indices(bins, pl.Series([10, 20, 39, 40, None])).tolist() == [1, 2, 2, 3, 0]
    category = Category("plan", ("x", "y"))
    assert user_indices(category, pl.Series(["y", "new", None, "x"])).tolist() == [2, 0, 0, 1]


def test_moments_are_utc() -> None:
    # 2024-02-29T23:59:59Z was a Thursday.
    assert moments(("hour", "weekday"), np.array([0, 1709251199])).tolist() == [[1, 4], [24, 4]]
    assert moments((), np.array([0])).shape == (1, 0)


def test_an_example_knows_earlier_seconds_only() -> None:
    train = Histories.from_sorted(
        np.array([0, 0, 0, 0, 1]),
        np.array([3, 4, 5, 6, 7], np.int32),
        np.array([10, 20, 20, 30, 5]),
        2,
    )
    examples = training_examples(train)
    known = {
        int(item): examples.history(np.array([row]), 3)[0].tolist()
        for row, item in enumerate(examples.item_index)
    }
    assert known == {7: [-1, -1, -1], 3: [-1, -1, -1], 4: [-1, -1, 3], 5: [-1, -1, 3], 6: [3, 4, 5]}
    assert examples.timestamp.tolist() == [5, 10, 20, 20, 30]


def test_held_out_examples_know_the_past_and_earlier_targets() -> None:
    split = temporal_split(shop(), 0.15, 0.25)
    examples = held_out_examples(split.test)
    assert len(examples) == len(split.test.targets.item_index)
    for row in range(len(examples)):
        user, now = examples.user_index[row], examples.timestamp[row]
        events = (
            shop()
            .interactions.filter((pl.col("user_index") == int(user)) & (pl.col("timestamp") < int(now)))[
                "item_index"
            ]
            .to_list()
        )
        found = examples.history(np.array([row]), 9)[0]
        assert found[found >= 0].tolist() == events


def test_labels() -> None:
    train = temporal_split(shop()).train
    rated = labels_of(train, "auto", 4.0)
    assert rated.targets == ("click", "rating")
    assert rated.clicks(np.array([4.0, 3.9], np.float32)).tolist() == [1.0, 0.0]
    assert labels_of(train, "auto", 9.0).targets == ("click",)
    with pytest.raises(DataError, match="1 to 5; expected some below and some at or above --click-at 9"):
        labels_of(train, "ratings", 9.0)
