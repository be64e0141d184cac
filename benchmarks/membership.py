"""What a model gives away of who it was trained on, with and without differential privacy.

    python -m recserve.benchmarks.membership --out benchmarks/results/membership.json

Half of ml-100k's users are members: SASRec learns from them alone, once as ever, once by DP-SGD. An attacker
who has a user's whole history, and asks the model for every score, guesses that those whose next items it
finds likely are members (loss attack: Yeom et al., "Privacy Risk in Machine Learning", 2018,
arXiv:1709.01604). Another has what a caller has, histories and the slates that answer them: how the two
differ is learned on a shadow model of other users, half of whom it knows (Zhang et al., "Membership Inference
Attacks Against Recommender Systems", 2021, arXiv:2109.08045). AUC 0.5 is chance; its interval is from users
drawn anew. Utility is NDCG@10 of the members' held-out last items. What is promised of a model trained as
ever is about the second attacker, who is a caller; of a private one about both.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from recserve import console
from recserve.benchmarks.environment import environment, machine_line
from recserve.benchmarks.output import Output
from recserve.benchmarks.runs import trained_run
from recserve.training.batches import pad
from recserve.training.commands import run_config
from recserve.training.data import Dataset, Histories, leave_one_out, load_dataset
from recserve.training.data.columns import USER_INDEX
from recserve.training.evaluate import evaluate_model
from recserve.training.loop import popularity_of
from recserve.training.models.sequence import SequenceModel
from recserve.training.private import noise_for

EPSILON, DELTA, MAX_NORM = 8.0, 1e-4, 1.0
PRIVATE = {"epsilon": EPSILON, "delta": DELTA, "max_norm": MAX_NORM, "epochs": 20, "dropout": 0.0}
ARMS: dict[str, dict[str, Any]] = {"as ever": {}, f"ε = {EPSILON:g}, δ = {DELTA:g}": PRIVATE}
# What the reliability promises are: of every model, and of a private one.
MAX_AUC, MAX_PRIVATE_AUC = 0.60, 0.55
N_BOOTSTRAP = 500
# Items of a slate, and dimensions of what the attacker knows of items.
SLATE, FEATURES = 10, 32


def halves(dataset: Dataset, seed: int) -> tuple[Dataset, NDArray[np.bool_]]:
    """Returns the data of the members, with all users and items in its tables, and who they are."""
    is_member = np.random.default_rng(seed).permutation(dataset.n_users) < dataset.n_users // 2
    return only(dataset, is_member), is_member


def only(dataset: Dataset, is_kept: NDArray[np.bool_]) -> Dataset:
    """Returns the data of some users, with all users and items in its tables."""
    kept = is_kept[dataset.interactions[USER_INDEX].to_numpy()]
    return Dataset.create(
        f"{dataset.name}, some of the users",
        dataset.interactions.filter(kept),
        dataset.users,
        dataset.items,
        report=dataset.report,
        source=dataset.source,
    )


@torch.inference_mode()
def likelihoods(model: SequenceModel, histories: Histories) -> NDArray[np.float64]:
    """Returns the mean log-probability of each user's next items, given those before, (n_users,)."""
    model.eval()
    found = []
    for start in range(0, len(histories), 64):
        rows = np.arange(start, min(start + 64, len(histories)))
        windows = torch.from_numpy(pad(histories, rows, model.config.max_history + 1)[0].astype(np.int64))
        history, targets = windows[:, :-1], windows[:, 1:]
        logs = F.log_softmax(model.score(model(history)), -1)
        picked = logs.gather(2, targets.clamp(min=0).unsqueeze(2)).squeeze(2)
        learned = (history >= 0) & (targets >= 0)
        found.append(((picked * learned).sum(1) / learned.sum(1).clamp(min=1)).double().numpy())
    return np.concatenate(found)


def auc(members: NDArray[np.float64], others: NDArray[np.float64]) -> float:
    """Returns how often a member's value is above another's; ties count half."""
    both = np.concatenate([members, others])
    _, place, counts = np.unique(both, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    n = len(members)
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * len(others)))


def attack(values: NDArray[np.float64], is_member: NDArray[np.bool_]) -> dict[str, float]:
    """Returns the AUC with its 95 % interval over users drawn anew."""
    members, others = values[is_member], values[~is_member]
    rng = np.random.default_rng(0)
    drawn = [
        auc(rng.choice(members, len(members)), rng.choice(others, len(others))) for _ in range(N_BOOTSTRAP)
    ]
    low, high = np.percentile(drawn, [2.5, 97.5])
    return {"mean": auc(members, others), "low": float(low), "high": float(high)}


@torch.inference_mode()
def differences(
    model: SequenceModel, histories: Histories, features: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Returns how each user's slate differs from the history that it answers, (n_users, FEATURES + 2)."""
    model.eval()
    found = []
    for row in range(len(histories)):
        items = histories.row(row)[0]
        window, _ = pad(histories, np.array([row]), model.config.max_history)
        scores = model.score(model.encode(torch.from_numpy(window)))[0].numpy().copy()
        scores[items] = -np.inf
        slate = np.argsort(-scores)[:SLATE]
        own, shown = features[items].mean(axis=0), features[slate].mean(axis=0)
        apart = own - shown
        length = np.linalg.norm(own) * np.linalg.norm(shown)
        found.append([*np.abs(apart), np.linalg.norm(apart), own @ shown / max(length, 1e-12)])
    return np.array(found)


def item_features(histories: Histories, n_items: int) -> NDArray[np.float64]:
    """Returns what an attacker knows of items from users of their own, (n_items, FEATURES)."""
    had = np.zeros((len(histories), n_items))
    had[np.repeat(np.arange(len(histories)), histories.lengths), histories.item_index] = 1
    _, values, directions = np.linalg.svd(had, full_matrices=False)
    return np.asarray(directions[:FEATURES].T * values[:FEATURES])


def guess(learned: NDArray[np.float64], is_member: NDArray[np.bool_]) -> Callable[[Any], NDArray[np.float64]]:
    """Returns a ridge regression of membership on ``learned``: features → how likely a member."""
    mean, spread = learned.mean(axis=0), learned.std(axis=0) + 1e-9
    known = (learned - mean) / spread
    gram = known.T @ known + len(known) * np.eye(known.shape[1])
    weights = np.linalg.solve(gram, known.T @ (is_member - is_member.mean()))
    return lambda found: np.asarray((found - mean) / spread @ weights)


def shadow_attack(
    dataset: Dataset, model: SequenceModel, is_member: NDArray[np.bool_], seed: int, shorter: dict[str, Any]
) -> dict[str, float]:
    """Returns the AUC of the attack by slates on ``model``; the shadow has half of the others as members."""
    windows = leave_one_out(dataset).train
    others = np.random.default_rng(seed + 1).permutation(np.flatnonzero(~is_member))
    shadow_users, held_out = np.sort(others[: len(others) // 2]), np.sort(others[len(others) // 2 :])
    in_shadow = np.isin(np.arange(dataset.n_users), shadow_users[::2])
    with tempfile.TemporaryDirectory() as folder:
        config = run_config("sasrec", "leave-one-out", {"seed": seed, **shorter})
        run = trained_run(Path(folder) / "run", config, only(dataset, in_shadow))
        shadow = run.best_model()
    if not isinstance(shadow, SequenceModel):
        raise TypeError(f"sasrec is a {type(shadow).__name__}")
    features = item_features(windows.take(shadow_users), dataset.n_items)
    learned = differences(shadow, windows.take(shadow_users), features)
    likely = guess(learned, in_shadow[shadow_users])
    asked = np.concatenate([np.flatnonzero(is_member), held_out])
    values = likely(differences(model, windows.take(asked), features))
    return attack(values, is_member[asked])


def measure(dataset: Dataset, seed: int, epochs: int | None) -> dict[str, Any]:
    """Trains and attacks both models."""
    members, is_member = halves(dataset, seed)
    # Of all users, members or not, what is in a training window of members: all but the last two.
    windows = leave_one_out(dataset).train
    arms: dict[str, Any] = {}
    shorter = {"epochs": epochs} if epochs else {}
    for name, settings in ARMS.items():
        given = {"seed": seed, **settings, **shorter}
        with tempfile.TemporaryDirectory() as folder:
            run = trained_run(Path(folder) / "run", run_config("sasrec", "leave-one-out", given), members)
            split, model = run.split(), run.best_model()
        if not isinstance(model, SequenceModel):
            raise TypeError(f"sasrec is a {type(model).__name__}")
        popularity = popularity_of(split, members.n_items)
        utility = evaluate_model(model, split.test, popularity).metrics["NDCG@10"]
        arms[name] = {
            "auc": attack(likelihoods(model, windows), is_member),
            "auc_by_slates": shadow_attack(dataset, model, is_member, seed, shorter),
            "ndcg": {"mean": utility.mean, "low": utility.low, "high": utility.high},
        }
        console.note(f"{name}: {arms[name]}")
    config = run_config("sasrec", "leave-one-out", {**PRIVATE, **shorter}).loop
    n_learned = int((split.train.lengths >= 2).sum())
    rate = min(1.0, config.users_per_step(n_learned) / n_learned)
    return {
        "n_members": int(is_member.sum()),
        "epsilon": EPSILON,
        "delta": DELTA,
        "noise": noise_for(config, rate),
        "membership": arms,
    }


def main() -> int:
    """Measures, writes the result, and returns 1 when a promise did not hold."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="ml-100k")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, help="of both; default: their own")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    options = parser.parse_args()
    machine = environment(("torch", "numpy", "opacus"))
    console.note(machine_line(machine))
    dataset = load_dataset(options.data, on_note=console.note)
    result = {
        "environment": machine,
        "dataset": dataset.name,
        **measure(dataset, options.seed, options.epochs),
    }
    plain, private = result["membership"].values()
    result["holds"] = {
        "as ever, by slates": plain["auc_by_slates"]["mean"] <= MAX_AUC,
        "private": max(private["auc"]["mean"], private["auc_by_slates"]["mean"]) <= MAX_PRIVATE_AUC,
    }
    from recserve.benchmarks.tables import show

    Output(options.out, json=options.json).publish("membership", result, show)
    return 0 if all(result["holds"].values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
