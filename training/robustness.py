"""How a model bears another seed, noise, fake users and what is new: each trained anew, then measured.

The split's held-out interactions and the histories of who asks stay as they are: what changes is what the
model learned from.
"""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recserve.errors import InvalidRequest
from recserve.training.anew import trained_anew
from recserve.training.cold_start import evaluate_cold_start
from recserve.training.corruption import ATTACKS, cut_items, with_attack, with_noise
from recserve.training.data import EvaluationSet, Histories, Split
from recserve.training.data.columns import USER_ID
from recserve.training.evaluate import K, evaluate_model, model_lister, steps
from recserve.training.loop import popularity_of
from recserve.training.models.base import RankingModel
from recserve.training.models.ranker import Ranker
from recserve.training.models.tables import TableModel
from recserve.training.run import Run

METRIC = "NDCG@10"
NOISE = (0.05, 0.1, 0.2)
ATTACK_SIZES = (0.01, 0.05)
COLD_EVENTS = (0, 1, 5)
# Items that an attack pushes, and of those cut to a few events at most.
N_TARGETS, MAX_COLD_ITEMS = 5, 500

Lists = NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """A model trained for one row of the report, and its lists for the test users, (n_users, 10)."""

    model: RankingModel
    split: Split
    lists: Lists


def n_trainings(n_seeds: int) -> int:
    """Returns how often :func:`evaluate_robustness` trains."""
    return n_seeds - 1 + len(NOISE) + len(ATTACKS) * len(ATTACK_SIZES) + len(COLD_EVENTS)


def evaluate_robustness(
    run: Run, *, n_seeds: int = 3, on_progress: Callable[[str], None] = lambda name: None
) -> dict[str, Any]:
    """Returns a row per scenario: NDCG@10 of the test users, against that of the run as it is.

    ``on_progress`` gets the name of each training that begins. Raises :class:`InvalidRequest` for a ranker
    of ratings, which makes no lists.
    """
    if n_seeds < 1:
        raise InvalidRequest("n_seeds", found=n_seeds, expected="1 or more")
    model, split = run.best_model(), run.split()
    if isinstance(model, Ranker) and model.labels.is_rated:
        raise InvalidRequest(
            f"model {run.config.model}", found="a ranker of ratings", expected="one of lists"
        )
    clean = Trained(model, split, _lists(model, split))
    bench = _Bench(run, clean, on_progress)
    rows = [bench.row("as trained", "", clean)]
    for scenario in bench.scenarios(n_seeds):
        rows += scenario
    if not isinstance(model, TableModel) or model.fold_in_settings is not None:
        for cold in evaluate_cold_start(run)["rows"]:
            setting = f"{'all' if cold['events'] is None else cold['events']} events, {cold['source']}"
            estimate = {name: cold[name] for name in ("mean", "low", "high")}
            rows.append({"scenario": "cold users", "setting": setting, METRIC: estimate})
    return {
        "run": str(run.folder),
        "model": run.config.model,
        "dataset": run.dataset.name,
        "protocol": f"{run.config.split}, full ranking, seen items filtered",
        "n_users": len(split.test.user_index),
        "metric": METRIC,
        "rows": rows,
    }


class _Bench:
    """Trains a run's model again and again, and compares with the run."""

    def __init__(self, run: Run, clean: Trained, on_progress: Callable[[str], None]) -> None:
        self._run, self._clean, self._on_progress = run, clean, on_progress
        self._seed = run.config.loop.seed
        self._mean = 0.0

    def scenarios(self, n_seeds: int) -> Iterator[list[dict[str, Any]]]:
        """Yields the rows of each training, and before the last ones what they compare with."""
        train, n_items = self._clean.split.train, self._run.dataset.n_items
        for seed in range(self._seed + 1, self._seed + n_seeds):
            yield [self.row("seed", f"{seed}", self._trained("seed", train, seed))]
        for share in NOISE:
            noisy = with_noise(train, share, n_items, self._rng())
            yield [self.row("noise", f"{share:.0%} of the events", self._trained("noise", noisy))]
        targets = self._unpopular()
        for kind in ATTACKS:
            for size in ATTACK_SIZES:
                n_profiles = max(1, round(size * len(train)))
                attacked = with_attack(train, kind, n_profiles, targets, n_items, self._rng())
                found = self._trained(f"{kind} attack", attacked)
                row = self.row(f"{kind} attack", f"{size:.0%} fake users", found)
                yield [row | self._pushed(found, targets)]
        cold, known = self._cold_items()
        before = self._only(known, self._clean)
        yield [self._cold_row("all events", before, before, len(cold))]
        for n in COLD_EVENTS:
            after = self._only(known, self._trained("cold items", cut_items(train, cold, n)))
            yield [self._cold_row(f"{n} events", after, before, len(cold))]

    def row(self, scenario: str, setting: str, found: Trained) -> dict[str, Any]:
        """Returns NDCG@10, its change and how much of the lists stayed."""
        estimate = _measure(found.model, found.split, found.split.test)
        if found is self._clean:
            self._mean = estimate["mean"]
        return {
            "scenario": scenario,
            "setting": setting,
            METRIC: estimate,
            "change": _change(estimate["mean"], self._mean),
            "same items": _overlap(found.lists, self._clean.lists),
        }

    def _trained(self, name: str, train: Histories, seed: int | None = None) -> Trained:
        self._on_progress(name)
        config, seed = self._run.config, self._seed if seed is None else seed
        split, dataset = dataclasses.replace(self._clean.split, train=train), self._run.dataset
        if n_fake := len(train) - dataset.n_users:
            fake = pl.DataFrame({USER_ID: [f"fake {number}" for number in range(n_fake)]})
            dataset = dataclasses.replace(dataset, users=pl.concat([dataset.users, fake], how="diagonal"))
        config = dataclasses.replace(config, loop=dataclasses.replace(config.loop, seed=seed))
        model, _ = trained_anew(config, dataset, split)
        return Trained(model, split, _lists(model, split))

    def _rng(self) -> np.random.Generator:
        return np.random.default_rng(self._seed)

    def _unpopular(self) -> NDArray[np.int32]:
        """Items that few had: the ones that somebody would pay to have pushed."""
        counts = popularity_of(self._clean.split, self._run.dataset.n_items)
        had = np.flatnonzero(counts)
        few = had[counts[had] <= np.median(counts[had])]
        return np.sort(self._rng().permutation(few)[:N_TARGETS]).astype(np.int32)

    def _pushed(self, found: Trained, targets: NDArray[np.int32]) -> dict[str, float]:
        lists = (self._clean.lists, found.lists)
        before, after = (float(np.isin(some, targets).any(axis=1).mean()) for some in lists)
        shift = _standing(found, targets) - _standing(self._clean, targets)
        return {"users shown a target before": before, "users shown a target": after, "score shift": shift}

    def _cold_items(self) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Items that are tested and have more events than any cut, and which test users have one."""
        counts = popularity_of(self._clean.split, self._run.dataset.n_items)
        targets = self._clean.split.test.targets
        rich = np.intersect1d(np.flatnonzero(counts > max(COLD_EVENTS)), targets.item_index)
        if not len(rich):
            raise InvalidRequest(
                "test items", found=f"without one of more than {max(COLD_EVENTS)} events", expected="some"
            )
        cold = np.sort(self._rng().permutation(rich)[: min(MAX_COLD_ITEMS, -(-len(rich) // 5))])
        row = np.repeat(np.arange(len(targets)), targets.lengths)
        known = np.zeros(len(targets), bool)
        known[row[np.isin(targets.item_index, cold)]] = True
        return cold, known

    def _only(self, known: NDArray[np.bool_], found: Trained) -> dict[str, float]:
        return _measure(found.model, found.split, found.split.test.take(np.flatnonzero(known)))

    def _cold_row(
        self, setting: str, found: dict[str, float], before: dict[str, float], n_items: int
    ) -> dict[str, Any]:
        change = _change(found["mean"], before["mean"])
        return {"scenario": f"cold items ({n_items})", "setting": setting, METRIC: found, "change": change}


def _measure(model: RankingModel, split: Split, test: EvaluationSet) -> dict[str, float]:
    popularity = popularity_of(split, model.n_items)
    return asdict(evaluate_model(model, test, popularity).metrics[METRIC])


def _lists(model: RankingModel, split: Split) -> Lists:
    lister = model_lister(model, split.test, popularity_of(split, model.n_items), K)
    parts = [lister(rows)[1] for rows in steps(len(split.test.user_index))]
    return np.concatenate(parts)


def _overlap(first: Lists, second: Lists) -> float:
    """Returns the mean share of a list's items that the other list has as well."""
    same = [np.isin(one[one >= 0], other).mean() for one, other in zip(first, second, strict=True)]
    return float(np.mean(same))


def _standing(found: Trained, items: NDArray[np.int32]) -> float:
    """Returns the mean score of ``items`` for the test users, in standard deviations of a user's scores."""
    total, n = 0.0, 0
    for rows in steps(len(found.split.test.user_index), found.model.n_items):
        scores = found.model.score_rows(found.split.test, rows).astype(np.float64)
        spread = np.maximum(scores.std(axis=1, keepdims=True), 1e-12)
        total += float(((scores[:, items] - scores.mean(axis=1, keepdims=True)) / spread).sum())
        n += len(rows) * len(items)
    return total / n


def _change(value: float, before: float) -> float:
    return value / before - 1 if before else 0.0
