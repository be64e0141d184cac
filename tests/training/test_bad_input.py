"""What users bring that is wrong: each is a named error or a counted warning, never a silent surprise."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from recserve.training.run import open_run

Cli = Callable[..., tuple[int, str, str]]
DAY = 24 * 3600


@pytest.fixture
def events(tmp_path: Path) -> Path:
    """20 users with 6 events each of 12 items, rated 1 to 5; u99 has one event, i99 is the last of u00."""
    rows = [
        (f"u{user:02}", f"i{(user + step) % 12:02}", 1000 + 60 * step, float((user + step) % 5 + 1))
        for user in range(20)
        for step in range(6)
    ]
    rows += [("u99", "i00", 1000, 3.0), ("u00", "i99", 9000, 3.0)]
    path = tmp_path / "events.csv"
    pl.DataFrame(rows, schema=["user", "item", "timestamp", "rating"], orient="row").write_csv(path)
    return path


def train(run_cli: Cli, events: Path, *options: str, model: str = "popularity") -> tuple[int, str]:
    code, _, said = run_cli(
        "train", "--data", events, "--model", model, "--out", events.parent / "run", *options
    )
    return code, said


def rewritten(events: Path, *columns: pl.Expr) -> Path:
    pl.read_csv(events).with_columns(*columns).write_csv(events)
    return events


def test_ratings_beyond_the_scale_are_dropped_and_counted(run_cli: Cli, events: Path) -> None:
    code, said = train(run_cli, events, "--value-range", "2:4")
    assert code == 0
    assert "out of range           48  (value 48)" in said
    assert open_run(events.parent / "run").dataset.report.out_of_range == {"value": 48}


@pytest.mark.parametrize("text", ["5", "5:1", "low:high", "nan:2"])
def test_a_scale_that_is_none_is_refused(run_cli: Cli, events: Path, text: str) -> None:
    code, said = train(run_cli, events, "--value-range", text)
    assert code == 2
    assert f"range of values is {text}; expected LOW:HIGH" in said


def test_events_of_the_future_are_dropped_and_counted(run_cli: Cli, events: Path) -> None:
    later = int(time.time()) + 3 * DAY
    rewritten(events, pl.when(pl.col("item") == "i03").then(later).otherwise("timestamp").alias("timestamp"))
    code, said = train(run_cli, events)
    assert code == 0
    assert "out of range           10  (timestamp 10)" in said
    assert "timestamps: 10 lie in the future" in said


def test_what_cannot_be_learned_or_tested_is_counted(run_cli: Cli, events: Path) -> None:
    expected = {
        "users with one interaction": 1,
        "users that are not tested": 1,
        "items in validation or test alone": 1,
        "test interactions with such items": 1,
    }
    code, said = train(run_cli, events)
    assert code == 0
    assert all(f"warning: {count} {name}" in said for name, count in expected.items())
    code, report, said = run_cli("evaluate", events.parent / "run", "--json")
    assert json.loads(report)["warnings"] == expected
    code, _, said = run_cli("evaluate", events.parent / "run")
    assert "warning: 1 items in validation or test alone" in said


def test_ratings_that_are_all_equal_are_an_error_or_a_warning(run_cli: Cli, events: Path) -> None:
    rewritten(events, pl.lit(4.0).alias("rating"))
    code, said = train(run_cli, events, model="svd")
    assert code == 1
    assert "training ratings is all 4; expected at least two different values" in said
    code, said = train(run_cli, events, "--labels", "ratings", model="lr")
    assert code == 1
    assert "values of the training interactions is 4 to 4; expected some below" in said
    assert not (events.parent / "run").exists()
    code, said = train(run_cli, events)
    assert code == 0
    assert "warning: 122 values that are all 4" in said


@pytest.mark.parametrize("model", ["dssm", "lr"])
def test_features_that_are_no_numbers_are_read_as_missing_and_counted(
    run_cli: Cli, events: Path, model: str
) -> None:
    prices = [float("nan"), float("inf"), *(float(price) for price in range(10))]
    items = pl.DataFrame({"item": [f"i{item:02}" for item in range(12)], "size": prices})
    items.write_parquet(events.parent / "items.parquet")
    options = ["--items", str(events.parent / "items.parquet"), "--epochs", "1", "--embedding-size", "4"]
    code, said = train(run_cli, events, *options, model=model)
    assert code == 0, said
    assert "warning: 2 item attribute size: not finite, read as missing" in said
    [line] = (events.parent / "run" / "epochs.jsonl").read_text().splitlines()
    assert json.loads(line)["loss"] > 0


def test_a_vocabulary_that_grew_is_refused_at_resume(run_cli: Cli, events: Path) -> None:
    options = ["--epochs", "1", "--embedding-size", "4"]
    assert train(run_cli, events, *options, model="als")[0] == 0
    with events.open("a") as file:
        file.write("u77,i77,5000,4\nu77,i78,5001,4\n")
    code, said = train(run_cli, events, *options, "--resume", model="als")
    assert code == 1
    assert "data of the resumed run is changed: 2 new items, 1 new users; expected the 122" in said
    events.unlink()
    code, said = train(run_cli, events, "--epochs", "2", "--embedding-size", "4", "--resume", model="als")
    assert code == 0
    assert "is not there any more: the run goes on with its copy" in said


def test_options_come_from_a_file_and_flags_go_first(run_cli: Cli, events: Path) -> None:
    config = events.parent / "train.toml"
    config.write_text(f'data = "{events}"\nmodel = "lr"\nembedding_size = 4\nepochs = 3\nhidden = [8, 4]\n')
    code, _, said = run_cli("train", "--config", config, "--epochs", "1", "--out", events.parent / "run")
    assert code == 0, said
    run = open_run(events.parent / "run")
    assert (run.config.loop.epochs, run.config.shape.embedding_size) == (1, 4)
    assert run.config.shape.hidden == (8, 4)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("embeding_size = 4", "unknown; expected the name of an option of `recserve train`. Did you mean"),
        ("[model]\nname = 1", "key model of"),
        ("epochs = ", "expected a TOML file"),
        ("resume = 1979-05-27", "expected a text, number, truth or list"),
    ],
)
def test_a_file_of_options_that_is_wrong_is_refused(run_cli: Cli, events: Path, text: str, said: str) -> None:
    config = events.parent / "train.toml"
    config.write_text(text)
    code, _, found = run_cli("train", "--config", config, "--data", events)
    assert code == 3
    assert said in found
