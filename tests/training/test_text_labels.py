"""Text classification: on texts whose class is known, the sentiment of items, and the command line."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from recserve.engine import cli
from recserve.errors import DataError
from recserve.training.data import Dataset, temporal_split
from recserve.training.data.cleaning import CleaningReport, clean
from recserve.training.data.columns import ITEM_ID, ColumnMap
from recserve.training.features.classifier import TextClassifier, out_of_fold
from recserve.training.run import open_run
from recserve.training.text_labels import filled, judge, mean_by, read_texts, with_means

GOOD, BAD, FILLER = (
    ["great", "lovely", "sturdy"],
    ["broken", "awful", "flimsy"],
    ["the", "mug", "came", "today"],
)


def reviews(n: int = 400) -> pl.DataFrame:
    """Items i0 to i9: the higher the number, the better the reviews; the newest last."""
    rng = np.random.default_rng(0)
    item = rng.integers(0, 10, n)
    liked = rng.random(n) < (0.5 + item) / 10
    words = [" ".join([*rng.choice(FILLER, 4), rng.choice(GOOD if good else BAD)]) for good in liked.tolist()]
    return pl.DataFrame(
        {
            "user": [f"u{user}" for user in rng.integers(0, 40, n)],
            "item": [f"i{number}" for number in item],
            "rating": np.where(liked, 5, 2),
            "timestamp": 1_700_000_000 + np.arange(n) * 60,
            "text": words,
        }
    )


def recserve(capfd: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        cli.main([str(argument) for argument in arguments])
    out, err = capfd.readouterr()
    return int(end.value.code or 0), out, err


def test_texts_are_told_apart_and_unknown_words_say_what_is_frequent() -> None:
    texts = ["a great mug", "lovely great", "broken again", "so broken", "great", "great mug"]
    classifier = TextClassifier(texts, ["yes", "yes", "no", "no", "yes", "yes"])
    assert classifier.classes == ["no", "yes"]
    found = classifier.probabilities(["great thing", "a broken one", "zzz", ""])
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-5)
    assert found[0, 1] > 0.9
    assert found[1, 0] > 0.7
    np.testing.assert_array_equal(found[2], found[3])
    assert found[2, 1] > 0.5
    # Convex: again the same.
    again = TextClassifier(texts, ["yes", "yes", "no", "no", "yes", "yes"]).probabilities(["great thing"])
    np.testing.assert_array_equal(again[0], found[0])


def test_more_than_two_classes_and_fewer() -> None:
    texts = ["red wine", "white wine", "blue cheese", "old cheese", "rye bread", "white bread"] * 3
    labels = [text.split()[1] for text in texts]
    assert TextClassifier(texts, labels).classes == ["bread", "cheese", "wine"]
    folds = out_of_fold(texts, labels)
    assert (folds.argmax(1) == [["bread", "cheese", "wine"].index(label) for label in labels]).all()
    with pytest.raises(DataError, match="classes of the texts"):
        TextClassifier(["a", "b"], ["x", "x"])


def test_the_sentiment_of_an_item_leaves_out_the_newest_reviews() -> None:
    table = reviews()
    # What the newest fifth says must not count: it is turned round.
    cut = int(table.height * 0.8)
    turned = pl.concat(
        [table[:cut], table[cut:].with_columns(text=pl.lit("awful"), rating=pl.lit(2, pl.Int64))]
    )
    found = [mean_by(read_texts(one, "text", "rating", 4), "item", "sentiment") for one in (table, turned)]
    assert found[0].equals(found[1])
    ordered = found[0].sort("item")["sentiment"].to_numpy()
    assert np.corrcoef(ordered, np.arange(10))[0, 1] > 0.9
    assert ((ordered > 0) & (ordered < 1)).all()


def test_the_split_of_all_rows_decides_what_counts_not_that_of_those_with_a_label() -> None:
    # Most of the old rows have no label: four fifths of the labelled ones reach into what is held out.
    table = reviews().with_columns(
        pl.when((pl.int_range(pl.len()) % 4 > 0) & (pl.int_range(pl.len()) < 300))
        .then(None)
        .otherwise("rating")
        .alias("rating")
    )
    events, _ = clean(table, ColumnMap())
    dataset = Dataset.from_events("reviews", events, report=CleaningReport(400, 400), source="test")
    last = int(temporal_split(dataset).train.timestamp.max())
    later = pl.col("timestamp") > last
    turned = table.with_columns(
        text=pl.when(later).then(pl.lit("awful")).otherwise("text"),
        rating=pl.when(later).then(2).otherwise("rating"),
    )
    found = [mean_by(read_texts(one, "text", "rating", 4), "item", "sentiment") for one in (table, turned)]
    assert found[0].equals(found[1])
    # The last second of training itself counts.
    awful = table.with_columns(
        rating=pl.when(pl.col("timestamp") == last).then(7 - pl.col("rating")).otherwise("rating")
    )
    assert not found[0].equals(mean_by(read_texts(awful, "text", "rating", 4), "item", "sentiment"))
    # Without users it is no table of events: its rows are what is split.
    alone = [read_texts(one.drop("user"), "text", "rating", 4) for one in (table, turned)]
    assert mean_by(alone[0], "item", "sentiment").equals(mean_by(alone[1], "item", "sentiment"))


def test_reviews_become_a_feature_that_a_ranker_reads(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    reviews().write_parquet(tmp_path / "reviews.parquet")
    pl.DataFrame({"sku": [f"i{n}" for n in range(10)], "price": list(range(10))}).write_csv(
        tmp_path / "items.csv"
    )
    options = ["--text", "text", "--label", "rating", "--at-least", 4, "--by", "item"]
    options += ["--items", tmp_path / "items.csv", "--out", tmp_path / "known.parquet", "--json"]
    code, text, _ = recserve(capfd, "classify", tmp_path / "reviews.parquet", *options)
    assert code == 0
    result = json.loads(text)
    assert result["AUC"] > 0.95
    assert result["accuracy"] > result["accuracy_of_likeliest"]
    data = [
        "--data",
        tmp_path / "reviews.parquet",
        "--items",
        tmp_path / "known.parquet",
        "--split",
        "temporal",
    ]
    train = ["train", *data, "--model", "lr", "--epochs", 1, "--out", tmp_path / "run"]
    assert recserve(capfd, *train)[0] == 0
    run = open_run(tmp_path / "run")
    assert run.dataset.items.columns == [ITEM_ID, "price", "sentiment"]
    assert "sentiment" in [number.name for number in run.best_model().schema.numbers]  # type: ignore[attr-defined,union-attr]


def test_missing_labels_are_filled(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    items = {
        "item": list("abcdefgh"),
        "title": [
            "red wine",
            "white wine",
            "blue cheese",
            "old cheese",
            "dry wine",
            "soft cheese",
            "some wine",
            "a cheese",
        ],
        "category": ["wine", "wine", "cheese", "cheese", "wine", "cheese", None, None],
    }
    pl.DataFrame(items).write_parquet(tmp_path / "items.parquet")
    options = ["--text", "title", "--label", "category", "--out", tmp_path / "filled.parquet"]
    assert recserve(capfd, "classify", tmp_path / "items.parquet", *options)[0] == 0
    filled = pl.read_parquet(tmp_path / "filled.parquet")
    assert filled["category"].to_list()[-2:] == ["wine", "cheese"]
    assert (filled["category_probability"][:6] == 1).all()
    assert (filled["category_probability"][6:] < 1).all()


def test_a_blank_and_a_number_that_is_none_are_no_labels() -> None:
    texts = ["red wine", "dry wine", "blue cheese", "old cheese", "some wine", "a cheese"]
    table = pl.DataFrame({"title": texts, "kind": ["wine", "wine", "cheese", "cheese", "", " "]})
    found = filled(read_texts(table, "title", "kind", None), "kind")
    assert found["kind"].to_list()[4:] == ["wine", "cheese"]
    assert (found["kind_probability"][4:] < 1).all()
    rated = pl.DataFrame({"text": ["a", "b", "c"], "rating": [5.0, float("nan"), 1.0]})
    assert read_texts(rated, "text", "rating", 4).labels == ["yes", None, "no"]
    assert read_texts(rated, "text", "rating", None).labels == ["5.0", None, "1.0"]


def test_newest_rows_of_one_class_have_an_accuracy_and_no_auc() -> None:
    table = pl.DataFrame({"text": ["good mug", "bad mug"] * 10, "rating": [5, 1] * 8 + [5] * 4})
    result = judge(read_texts(table, "text", "rating", 4))
    assert result["n_held_out"] == 4
    assert 0 <= result["accuracy"] <= 1
    assert "AUC" not in result


def test_means_meet_items_whose_ids_are_numbers_and_replace_no_column() -> None:
    table = reviews().with_columns(item=pl.col("item").str.slice(1).cast(pl.Int64))
    means = mean_by(read_texts(table, "text", "rating", 4), "item", "sentiment")
    items = pl.DataFrame({"item_id": ["9", "0", "none"], "price": [1, 2, 3]})
    found = with_means(items, means)
    assert found.columns == ["item_id", "price", "sentiment"]
    assert found["sentiment"][0] > found["sentiment"][1]
    assert found["sentiment"][2] is None
    with pytest.raises(DataError, match="column sentiment"):
        with_means(found, means)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--text", "no_such", "--label", "rating"], "column no_such"),
        (["--text", "text", "--label", "rating", "--by", "item"], "--by"),
        (["--text", "text", "--label", "rating", "--at-least", "4", "--by", "no_such"], "column no_such"),
        (["--text", "text", "--label", "rating", "--items", "items.csv"], "--items"),
        (["--text", "text", "--label", "rating", "--at-least", "9"], "classes of the texts"),
    ],
)
def test_what_cannot_be_done_is_refused(
    options: list[str], message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    reviews(50).write_parquet(tmp_path / "reviews.parquet")
    out = ["--out", tmp_path / "out.parquet"]
    code, _, err = recserve(capfd, "classify", tmp_path / "reviews.parquet", *options, *out)
    assert code in {1, 2}
    assert message in err
    assert not (tmp_path / "out.parquet").exists()
