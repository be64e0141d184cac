"""The map of a catalogue, on a run whose clusters are known and through the command line."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from recserve.engine import cli
from recserve.training.catalogue_map import plane, silhouette
from recserve.training.kmeans import k_means

SHOP = "synthetic-shop:n_items=1000,n_users=100,n_events=3000,seed=4"


def recserve(capfd: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        cli.main([str(argument) for argument in arguments])
    out, err = capfd.readouterr()
    return int(end.value.code or 0), out, err


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tastes: even users have even items, odd users odd ones."""
    folder = tmp_path_factory.mktemp("events")
    rng = np.random.default_rng(0)
    rows = [
        {"user": f"u{user}", "item": f"i{item}", "timestamp": 1_700_000_000 + place}
        for user in range(40)
        for place, item in enumerate(rng.choice(np.arange(user % 2, 30, 2), 10, replace=False).tolist())
    ]
    pl.DataFrame(rows).write_csv(folder / "events.csv")
    items = [
        {"item": f"i{item}", "title": "jazz record" if item % 2 else "rock record"} for item in range(30)
    ]
    pl.DataFrame(items).write_csv(folder / "items.csv")
    return folder


def test_two_tastes_are_two_clusters(events: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    files = ["--data", events / "events.csv", "--items", events / "items.csv"]
    settings = ["--model", "als", "--embedding-size", 4]
    assert recserve(capfd, "train", *files, *settings, "--out", tmp_path / "run")[0] == 0
    out, plot = tmp_path / "map", tmp_path / "map.svg"
    options = ["--clusters", 2, "--out", out, "--plot", plot, "--json"]
    code, text, _ = recserve(capfd, "map", tmp_path / "run", *options)
    assert code == 0
    found = json.loads(text)
    assert [one["n_items"] for one in found["clusters"]] == [15, 15]
    assert {one["words"][0] for one in found["clusters"]} == {"jazz", "rock"}
    assert min(found["silhouette"].values()) > 0.5
    items, users = (pl.read_parquet(out / f"{name}.parquet") for name in ("items", "users"))
    for table, name in ((items, "item_id"), (users, "user_id")):
        parity = table[name].str.slice(1).cast(pl.Int64) % 2
        assert table.with_columns(parity=parity).select("parity", "cluster").unique().height == 2
    assert plot.stat().st_size > 1000
    # The clusters are attributes that a model can read.
    again = ["--data", events / "events.csv", "--items", out / "items.parquet", "--model", "tfidf"]
    assert recserve(capfd, "train", *again, "--out", tmp_path / "again")[0] == 0


@pytest.mark.parametrize("model", ["sasrec", "dssm"])
def test_other_families_have_a_map_too(model: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    settings = ["--embedding-size", 8, "--epochs", 1]
    train = ["train", "--data", SHOP, "--model", model, *settings, "--out", tmp_path / "run"]
    assert recserve(capfd, *train)[0] == 0
    code, text, _ = recserve(capfd, "map", tmp_path / "run", "--clusters", 3)
    assert code == 0
    assert "c2" in text


def test_a_model_without_item_vectors_and_no_clusters_are_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    train = ["train", "--data", SHOP, "--model", "ease", "--out", tmp_path / "run"]
    assert recserve(capfd, *train)[0] == 0
    code, _, message = recserve(capfd, "map", tmp_path / "run")
    assert code == 2
    assert "model ease for a map is without item vectors" in message
    code, _, message = recserve(capfd, "map", tmp_path / "run", "--clusters", 0)
    assert code == 2
    assert "clusters is 0" in message


def test_the_plane_keeps_the_distances_of_points_in_a_plane_and_silhouettes_know_clusters() -> None:
    rng = np.random.default_rng(0)
    flat = rng.normal(size=(50, 2)).astype(np.float32)
    turned = flat @ np.linalg.qr(rng.normal(size=(6, 2)))[0].T.astype(np.float32)
    distances = [np.linalg.norm(x[:, None] - x[None], axis=2) for x in (flat, plane(turned))]
    np.testing.assert_allclose(*distances, atol=1e-4)
    assert plane(turned[:, :1]).shape == (50, 2)
    apart = np.concatenate([flat, flat + 100])
    for k, expected in ((1, 0.0), (2, 1.0)):
        centres, cluster = k_means(apart, k, rng)
        assert silhouette(apart, centres, cluster) == pytest.approx(expected, abs=0.05)
