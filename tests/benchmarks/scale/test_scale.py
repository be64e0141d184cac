"""``bench scale``: the planted exponent is found, a grown bundle is the same model, fleets add up."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recserve.benchmarks.compare import rows_of
from recserve.benchmarks.scale.fit import cost_at, fit_power_law
from recserve.benchmarks.scale.fleet import Fleet, plan
from recserve.benchmarks.scale.grown import grow_bundle
from recserve.benchmarks.scale.options import ScaleOptions, choose_axes
from recserve.engine import Engine, Request
from recserve.engine.bundle import open_bundle
from recserve.errors import InvalidRequest

RunCli = Callable[..., tuple[int, str, str]]
SIZES = [10.0, 30.0, 100.0, 300.0, 1000.0]
MEMORY = {"item_bytes": 1000.0, "user_bytes": 100.0, "process_bytes": 1e9}
ROWS = [{"size": 1000, "cpu_us_per_request": 50.0}, {"size": 100_000, "cpu_us_per_request": 150.0}]


@given(st.floats(-2, 2), st.floats(1e-3, 1e3))
def test_the_fit_finds_the_exponent_of_a_power_law(exponent: float, factor: float) -> None:
    law = fit_power_law(SIZES, [factor * size**exponent for size in SIZES])
    assert law is not None
    assert law.exponent == pytest.approx(exponent, abs=1e-6)
    assert law.factor == pytest.approx(factor, rel=1e-6)
    assert law.low is not None
    assert law.high is not None
    assert law.low <= law.exponent <= law.high
    assert law.last == pytest.approx(exponent, abs=1e-6)


def test_the_interval_of_the_exponent_covers_it_nineteen_times_in_twenty() -> None:
    rng = np.random.default_rng(3)
    covered = 0
    for _ in range(1000):
        law = fit_power_law(SIZES, [size**0.8 * np.exp(rng.normal(0, 0.1)) for size in SIZES])
        assert law is not None
        assert law.low is not None
        assert law.high is not None
        covered += law.low <= 0.8 <= law.high
    assert 920 <= covered <= 980


def test_too_few_points_have_no_interval_or_no_fit() -> None:
    law = fit_power_law([1, 10], [1, 100])
    assert law is not None
    assert (round(law.exponent, 9), round(law.last, 9), law.low) == (2, 2, None)
    assert fit_power_law([5], [1]) is None


def test_costs_lie_on_the_measured_line_and_grow_in_proportion_beyond_it() -> None:
    assert cost_at(100, [10, 1000], [1, 100]) == pytest.approx(10)
    assert cost_at(5000, [10, 1000], [1, 100]) == pytest.approx(500)
    assert cost_at(1, [10, 1000], [1, 100]) == pytest.approx(1)


def test_a_fleet_is_what_its_assumptions_say() -> None:
    fleet = Fleet(rate=20_000, users=10_000_000, server_us=50, utilisation=0.5, node_cores=4)
    found = plan(fleet, ROWS, MEMORY, 8)
    # 200 µs each, half of the time: 8 cores, 2 machines; 1 GB + 0.1 GB of items + 1 GB of users.
    assert (found["cores"], found["nodes"]) == (pytest.approx(8), 2)
    assert found["node_gb"] == pytest.approx(2.1)
    assert found["euros_per_month"] == pytest.approx(730 * 2 * (4 * 0.03 + 2.1 * 0.004))
    assert found["euros_per_million"] == pytest.approx(2 * (0.12 + 0.0084) / 3600 / 20_000 * 1e6)
    assert plan(Fleet(items=200_000), ROWS, MEMORY, 8)["engine_us"] == pytest.approx(300)
    with pytest.raises(InvalidRequest, match="utilisation"):
        Fleet(utilisation=1.2)


def test_axes_are_those_named_or_all() -> None:
    assert choose_axes({"items": "300,100,300", "k": ""}, quick=True, large=False) == {"items": (100, 300)}
    assert choose_axes({}, quick=False, large=True)["items"][-1] == 10_000_000
    with pytest.raises(InvalidRequest, match="--batch"):
        ScaleOptions({"batch": (257,)})


@pytest.mark.parametrize("kind", ["bundle_folder", "table_bundle_folder", "two_stage_folder"])
def test_a_grown_bundle_is_the_same_model_over_more_items(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    source = request.getfixturevalue(kind)
    grow_bundle(source, tmp_path / "grown", 3000, seed=1)
    before, after = open_bundle(source), open_bundle(tmp_path / "grown")
    assert after.manifest.n_items == 3000
    n = before.manifest.n_items
    assert np.array_equal(after.item_embeddings[:n], before.item_embeddings)
    norms = np.linalg.norm(after.item_embeddings, axis=1)
    assert norms[n:].max() <= norms[:n].max() * 1.0001
    with Engine.load(tmp_path / "grown") as grown, Engine.load(source) as engine:
        user = engine.user_ids()[0]
        wanted = Request(user_id=user, k=5, **({"predict": "retrieval"} if "stage" in kind else {}))
        own = [
            item for item in grown.recommend(Request(user_id=user, k=1000)).items if item.item_id[0] != "a"
        ]
        # The items of the trained catalogue keep their order and scores among themselves.
        for mine, theirs in zip(own, engine.recommend(wanted).items, strict=False):
            assert (mine.item_id, mine.score) == (theirs.item_id, pytest.approx(theirs.score, abs=1e-4))


def test_a_catalogue_cannot_shrink(bundle_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="or more"):
        grow_bundle(bundle_folder, tmp_path / "grown", 10, seed=1)


def test_the_verb_measures_and_writes_every_form(
    run_cli: RunCli, bundle_folder: Path, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    saved, table, page = tmp_path / "r.json", tmp_path / "r.csv", tmp_path / "r.html"
    sizes = ["--items", "500,1500", "--history", "1,4", "--callers", "1,2", "--dim", "8,16"]
    outputs = ["--out", saved, "--csv", table, "--html", page]
    code, out, _ = run_cli("bench", "scale", bundle_folder, *sizes, "--seconds", 0, *outputs)
    assert code == 0
    for words in ("growth: time of a call", "bytes per item", "a fleet, on paper", "assumed: The server"):
        assert words in out
    result = json.loads(saved.read_text())
    n_items = open_bundle(bundle_folder).manifest.n_items
    wanted = {"search items 500", "search items 1500", f"bundle items {n_items}", "bundle items 1500"}
    wanted |= {"bundle history 1", "bundle history 4", "search dim 8", "search dim 16"}
    wanted |= {f"{what} callers {n}" for what in ("search", "bundle") for n in (1, 2)}
    assert set(rows_of(result)) == wanted
    assert rows_of(result)["search items 500"]["median_ms"].low is not None
    assert {(fit["what"], fit["axis"]) for fit in result["fits"]} == {
        (row["what"], row["axis"]) for row in result["rows"]
    }
    assert len(list(csv.DictReader(table.read_text().splitlines()))) == len(result["rows"])
    assert "cost by items" in page.read_text()
