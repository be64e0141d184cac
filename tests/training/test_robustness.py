"""Training data gone wrong on purpose, and the report of what that does to a model."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recserve.errors import InvalidRequest
from recserve.training import robustness
from recserve.training.corruption import ATTACKS, cut_items, with_attack, with_noise
from recserve.training.data import Histories

SHOP = "synthetic-shop:n_items=1000,n_users=100,n_events=3000,seed=4"
N_ITEMS = 30


def some(n_rows: int = 20, seed: int = 0) -> Histories:
    rng = np.random.default_rng(seed)
    row = np.repeat(np.arange(n_rows), rng.integers(1, 9, n_rows))
    n = len(row)
    times = np.arange(n) * 10 + 1000
    return Histories.from_sorted(
        row, rng.integers(0, N_ITEMS, n).astype(np.int32), times, n_rows, rng.integers(1, 6, n)
    )


@given(share=st.floats(0, 1), seed=st.integers(0, 99))
def test_noise_changes_at_most_its_share_and_items_alone(share: float, seed: int) -> None:
    train = some(seed=seed)
    before = train.item_index.copy()
    noisy = with_noise(train, share, N_ITEMS, np.random.default_rng(seed))
    assert np.array_equal(train.item_index, before)
    assert (noisy.item_index != before).sum() <= round(share * len(before))
    assert np.array_equal(noisy.indptr, train.indptr)
    assert noisy.item_index.min() >= 0
    assert noisy.item_index.max() < N_ITEMS


@pytest.mark.parametrize("kind", ATTACKS)
def test_every_fake_user_has_the_targets_at_the_top_and_fillers(kind: str) -> None:
    train, targets = some(), np.array([3, 7], np.int32)
    attacked = with_attack(train, kind, 5, targets, N_ITEMS, np.random.default_rng(1))
    assert len(attacked) == len(train) + 5
    real = attacked.take(np.arange(len(train)))
    assert np.array_equal(real.item_index, train.item_index)
    popular = np.argsort(-np.bincount(train.item_index, minlength=N_ITEMS), kind="stable")
    n_fillers = round(len(train.item_index) / len(train))
    for fake in range(len(train), len(attacked)):
        items, times = attacked.row(fake)
        values = attacked.value[attacked.indptr[fake] : attacked.indptr[fake + 1]]
        assert len(items) == n_fillers + 2
        assert set(targets) <= set(items)
        assert values[np.isin(items, targets)].max() == train.value.max()
        assert (np.diff(times) >= 0).all()
        assert train.timestamp.min() <= times.min()
        assert times.max() <= train.timestamp.max()
        if kind == "bandwagon":
            assert set(popular[: round(n_fillers / 2)]) <= set(items)
        if kind == "average":
            assert set(items) - set(targets) <= set(train.item_index)


def test_an_unknown_attack_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="attack is love; expected one of random, average, bandwagon"):
        with_attack(some(), "love", 1, np.array([1], np.int32), N_ITEMS, np.random.default_rng(0))


@given(n=st.integers(0, 6), seed=st.integers(0, 99))
def test_cut_items_keep_their_first_events_and_the_others_all(n: int, seed: int) -> None:
    train, cut = some(seed=seed), np.array([1, 2, 3])
    left = cut_items(train, cut, n)
    before, after = (np.bincount(one.item_index, minlength=N_ITEMS) for one in (train, left))
    assert np.array_equal(after[cut], np.minimum(before[cut], n))
    others = np.setdiff1d(np.arange(N_ITEMS), cut)
    assert np.array_equal(after[others], before[others])
    for item in cut:
        times = np.sort(train.timestamp[train.item_index == item])[:n]
        assert np.array_equal(np.sort(left.timestamp[left.item_index == item]), times)


def test_the_report_has_every_scenario(run_cli: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    options = ["--model", "als", "--embedding-size", "8", "--epochs", "2", "--out", tmp_path / "run"]
    assert run_cli("train", "--data", SHOP, *options)[0] == 0
    out, plot = tmp_path / "report.json", tmp_path / "report.svg"
    arguments = ["evaluate", tmp_path / "run", "--robustness", "--seeds", "2", "--out", out, "--plot", plot]
    code, table, said = run_cli(*arguments)
    assert code == 0, said
    assert plot.stat().st_size > 1000
    rows = json.loads(out.read_text())["rows"]
    scenarios = [row["scenario"].split(" (")[0] for row in rows]
    attacks = [f"{kind} attack" for kind in ATTACKS for _ in robustness.ATTACK_SIZES]
    assert scenarios == [
        *("as trained", "seed", "noise", "noise", "noise", *attacks),
        *["cold items"] * 4,
        *["cold users"] * 4,
    ]
    assert rows[0]["change"] == 0
    assert rows[0]["same items"] == 1
    assert all(0 < row["same items"] < 1 for row in rows[1:11])
    pushed = [row for row in rows if row["scenario"] == "average attack"][-1]
    assert pushed["score shift"] > 0.1
    # An item that nobody had is in no list of a model that knows nothing else of it.
    nobody = next(row for row in rows if row["setting"] == "0 events" and "items" in row["scenario"])
    everybody = next(row for row in rows if row["setting"] == "all events")
    assert nobody["NDCG@10"]["mean"] < everybody["NDCG@10"]["mean"]
    assert "bandwagon" in table
    code, _, said = run_cli("evaluate", tmp_path / "run", "--robustness", "--seeds", "0")
    assert code == 2
    assert "n_seeds is 0; expected 1 or more" in said
