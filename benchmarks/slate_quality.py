"""What the stages after retrieval are worth on ml-100k: ``python -m recserve.benchmarks.slate_quality``.

*Two stages*: DeepFM (listwise, of the newest ten items) orders the candidates of ALS and of SASRec, by its
prediction alone and by a formula with the retrieval score, whose weight is chosen on validation. *Diversity*:
slates by a determinantal point process. Both as the engine answers: leave-one-out, 943 users, histories up to
the held-out item and its moment. *Context*: DeepFM that knows the moment and the session (the newest items)
next to one that knows neither, by the AUC of the held-out item among all others. Changes are paired by user,
intervals from resampled users.
"""

import argparse
import datetime
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recserve import console
from recserve.benchmarks.environment import environment
from recserve.benchmarks.output import Output
from recserve.benchmarks.runs import trained_run
from recserve.benchmarks.tables import RESULTS, show
from recserve.engine import Engine, EngineConfig, Request, Rules
from recserve.exporters.assemble import export_run
from recserve.training import metrics
from recserve.training.commands import run_config
from recserve.training.data import Dataset, EvaluationSet, load_dataset
from recserve.training.evaluate import model_scorer
from recserve.training.list_metrics import vector_diversity
from recserve.training.run import Run, open_run

K, BATCH = 10, 64
RETRIEVAL, RANKER = ("als", "sasrec"), "deepfm"
WEIGHTS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
DIVERSITIES = (0.01, 0.02, 0.05, 0.1, 0.12, 0.15, 0.2)
LISTWISE = {"labels": "listwise", "max_history": 10, "negatives": 32}
CONTEXTS: dict[str, dict[str, Any]] = {
    "moment and session": {},
    "session": {"context": False},
    "neither": {"context": False, "max_history": 0},
}
# DPP must raise diversity by so much, at no larger loss of NDCG.
LEAST_DIVERSITY, MOST_LOSS = 0.20, 0.03

Values = NDArray[np.float64]


def main() -> None:
    """Runs all three and writes JSON."""
    parser = argparse.ArgumentParser(prog="recserve.benchmarks.slate_quality", description=__doc__)
    parser.add_argument("--runs", type=Path, help="folder of run folders: those there are used, others made")
    parser.add_argument("--out", type=Path, default=RESULTS / "slate_quality.json")
    options = parser.parse_args()
    dataset = load_dataset("ml-100k", on_note=console.note)
    with tempfile.TemporaryDirectory(prefix="recserve-slate-quality-") as folder:
        runs = options.runs or Path(folder)
        aucs_of = context(runs, dataset)
        ranker = open_run(runs / f"{RANKER} with {next(iter(CONTEXTS))}")
        n_users = len(ranker.split().test.user_index)
        stages, diversity = [], []
        for name in RETRIEVAL:
            run = trained(runs / name, dataset, name, {})
            export_run(run, Path(folder) / f"{name}-bundle", ranker=ranker)
            with Engine.load(Path(folder) / f"{name}-bundle", EngineConfig(provider="cpu")) as engine:
                stages += two_stages(engine, run, name)
                diversity += diversities(engine, run, name)
    result = {
        "bench": "slate_quality",
        "environment": environment(("torch", "numpy", "onnxruntime-gpu")),
        "protocol": f"ml-100k, leave-one-out, {n_users} users, as the engine answers",
        "two_stages": stages,
        "diversity": diversity,
        "context": aucs_of,
    }
    Output(options.out).publish("slate_quality", result, show)


def trained(folder: Path, dataset: Dataset, model: str, settings: dict[str, Any]) -> Run:
    """Returns the run in ``folder``, which is made with the family's defaults where it is not there."""
    if folder.is_dir():
        return open_run(folder)
    return trained_run(folder, run_config(model, "leave-one-out", settings), dataset)


def answers(engine: Engine, held_out: EvaluationSet, **asked: Any) -> tuple[Values, NDArray[np.int32]]:
    """Returns NDCG@10 of each user and the slates (n_users, K), −1 beyond their end."""
    vocabulary, users = engine.loaded.bundle.catalogue.vocabulary, engine.user_ids()
    slates = np.full((len(held_out.user_index), K), -1, np.int32)
    for start in range(0, len(slates), BATCH):
        rows = range(start, min(start + BATCH, len(slates)))
        requests = [
            Request(
                user_id=users[held_out.user_index[row]],
                history=vocabulary.ids(held_out.histories.row(row)[0]),
                context=_moment(int(held_out.targets.timestamp[row])),
                k=K,
                **asked,
            )
            for row in rows
        ]
        for row, slate in zip(rows, engine.recommend_many(requests), strict=True):
            found = vocabulary.indices([item.item_id for item in slate.items])
            slates[row, : len(found)] = found
    wanted = held_out.targets.item_index
    ranks = [
        1.0 + np.flatnonzero(slate == item).astype(np.float64)
        for slate, item in zip(slates, wanted, strict=True)
    ]
    return metrics.ndcg([found if len(found) else np.array([np.inf]) for found in ranks], K), slates


def _moment(timestamp: int) -> dict[str, str]:
    """Returns when the held-out item was met, as a request of that moment would say it."""
    moment = datetime.datetime.fromtimestamp(timestamp, datetime.UTC)
    return {"hour": str(moment.hour), "weekday": str(moment.weekday())}


def two_stages(engine: Engine, run: Run, name: str) -> list[dict[str, Any]]:
    """Returns NDCG@10 of retrieval alone and of both formulas, with the gain over it."""
    split = run.split()
    validation = {
        weight: answers(engine, split.validation, weights={"click": 1.0, "retrieval": weight})[0].mean()
        for weight in WEIGHTS
    }
    weight = max(validation, key=lambda one: float(validation[one]))
    ways: dict[str, dict[str, Any]] = {
        f"{name} alone": {"predict": "retrieval"},
        f"{name}, then {RANKER}": {"predict": "context"},
        f"{name}, then {RANKER} + {weight:g} · retrieval": {"weights": {"click": 1.0, "retrieval": weight}},
    }
    found = {way: answers(engine, split.test, **asked)[0] for way, asked in ways.items()}
    alone = found[f"{name} alone"]
    return [
        {
            "what": way,
            "ndcg@10": asdict(metrics.bootstrap(values)),
            "gain": asdict(metrics.bootstrap(values - alone)),
        }
        for way, values in found.items()
    ]


def diversities(engine: Engine, run: Run, name: str) -> list[dict[str, Any]]:
    """Returns for each weight of DPP what it does to NDCG@10 and to the mean cosine distance of a slate."""
    test, vectors = run.split().test, np.asarray(engine.loaded.bundle.item_embeddings)
    rows = []
    for predict_ in ("retrieval", "context"):
        what = f"{name} alone" if predict_ == "retrieval" else f"{name}, then {RANKER}"
        plain, slates = answers(engine, test, predict=predict_)
        before, scale = vector_diversity(slates, vectors), max(float(plain.mean()), 1e-12)
        for weight in DIVERSITIES:
            ndcg, slates = answers(engine, test, predict=predict_, rules=Rules(diversity=weight))
            after = vector_diversity(slates, vectors)
            raised = float(after.mean() / before.mean() - 1)
            change = (ndcg - plain) / scale
            rows.append(
                {
                    "what": what,
                    "weight": weight,
                    "ndcg@10": float(ndcg.mean()),
                    "ndcg_change": asdict(metrics.bootstrap(change)),
                    "diversity": float(after.mean()),
                    "diversity_raised": raised,
                    "reached": bool(raised >= LEAST_DIVERSITY and change.mean() >= -MOST_LOSS),
                }
            )
    return rows


def context(runs: Path, dataset: Dataset) -> dict[str, Any]:
    """Returns the AUC of the ranker with the moment and the session, and its gain over models without."""
    samples = {}
    for way, settings in CONTEXTS.items():
        console.note(f"{RANKER} with {way}")
        run = trained(runs / f"{RANKER} with {way}", dataset, RANKER, LISTWISE | settings)
        samples[way] = aucs(run)
    first = samples[next(iter(CONTEXTS))]
    return {
        "model": RANKER,
        "auc": {way: asdict(metrics.bootstrap(one)) for way, one in samples.items()},
        "gain_over": {
            way: asdict(metrics.bootstrap(first - one)) for way, one in samples.items() if one is not first
        },
    }


def aucs(run: Run) -> Values:
    """Returns for each test user which share of the items that it did not have score below the next one."""
    test, model, found = run.split().test, run.best_model(), []
    score = model_scorer(model, test, np.zeros(model.n_items, np.int64))
    for start in range(0, len(test.user_index), BATCH):
        rows = np.arange(start, min(start + BATCH, len(test.user_index)))
        for row, scores in zip(rows.tolist(), score(rows), strict=True):
            others = np.ones(len(scores), np.bool_)
            others[test.histories.row(row)[0]] = False
            wanted = test.targets.item_index[row]
            others[wanted] = False
            below = (scores[others] < scores[wanted]).mean() + (scores[others] == scores[wanted]).mean() / 2
            found.append(below)
    return np.array(found)


if __name__ == "__main__":
    main()
