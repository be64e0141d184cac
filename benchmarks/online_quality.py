"""ml-100k replayed in time order: what live histories and online learning are worth, and what an attack does.

    python -m recserve.benchmarks.online_quality --out benchmarks/results/online_quality.json

A model learns from the first ``KNOWN`` of all ratings. The next ones are asked for one by one, in their
order: ten items for the user of each, then the user rates the item. A hit is a slate with that item in it.
*frozen* knows what its bundle knows, and is told what was rated since only to leave it out; *live history*
observes every event; the others record the slate's impressions and the click on a hit as well, and learn
from them online. Gains are differences of HR@10 by event, their intervals from users drawn anew, the same for
both.

The attack is bandwagon: accounts as many as 3 % of the users come, each twice at random moments of the
replay. First they view half of the popular items; then they ask for slates and click on whatever they are
shown of the other half and of one target, from the more popular half of the other items. What matters is what
genuine users get. Each target is one whole replay; the promises are about ftrl and linucb.
"""

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recserve import console
from recserve.benchmarks.environment import environment, machine_line
from recserve.benchmarks.output import Output
from recserve.benchmarks.runs import trained_run
from recserve.engine.bundle import Bundle
from recserve.engine.engine import Engine
from recserve.engine.feedback_client import impressions, new_event
from recserve.engine.online.config import OnlineConfig
from recserve.engine.online.features import ItemVectors
from recserve.engine.online.learner import Learner
from recserve.engine.online.stage import OnlineStage
from recserve.engine.state.events import EVERY_PURPOSE, Event
from recserve.engine.state.observed import ObservedEvents
from recserve.engine.state.state import LoggedEvent
from recserve.engine.types import Request, Slate
from recserve.exporters.assemble import export_run
from recserve.training.commands import run_config
from recserve.training.data import Dataset, load_dataset
from recserve.training.data.columns import ITEM_INDEX, TIMESTAMP, USER_INDEX
from recserve.training.metrics import N_BOOTSTRAP

K = 10
KNOWN = 0.6
ATTACKERS = 0.03
# Of an attacker's second visit: more than count in an hour.
SLATES = 40
FROZEN, LIVE = "frozen", "live history"
LEARNERS = {
    "ftrl": OnlineConfig(algorithm="ftrl"),
    "ftrl, strength 0.1": OnlineConfig(algorithm="ftrl", strength=0.1),
    "linucb": OnlineConfig(algorithm="linucb"),
}
PROMISED = ("ftrl", "linucb")
# Of HR@10 over the frozen model; of the target's share of slates, and how many times as often where it was in
# some; of NDCG@10.
MIN_GAIN, MAX_TARGET_RISE, MAX_TARGET_TIMES, MAX_GENUINE_LOSS = 0.02, 0.005, 3.0, 0.01
SEEN_TARGET = 0.001


@dataclass(frozen=True, slots=True)
class Later:
    """The events to be replayed, oldest first."""

    users: list[str]
    items: list[str]
    times: list[int]


@dataclass(slots=True)
class Seen:
    """What one replay saw, by event: the slate, whether it hit, and its NDCG."""

    slates: list[list[str]] = field(default_factory=list)
    hits: list[float] = field(default_factory=list)
    gains: list[float] = field(default_factory=list)

    def share_with(self, item: str) -> float:
        """Returns the share of the slates that have ``item``."""
        return float(np.mean([item in slate for slate in self.slates]))


def cut(dataset: Dataset, n_later: int) -> tuple[Dataset, Later]:
    """Returns the first ``KNOWN`` of the interactions with all users and items, and the next ones."""
    ordered = dataset.interactions.sort(TIMESTAMP, maintain_order=True)
    n = int(len(ordered) * KNOWN)
    known = Dataset.create(
        f"{dataset.name}, the first {KNOWN:.0%}",
        ordered[:n],
        dataset.users,
        dataset.items,
        report=dataset.report,
        source=dataset.source,
    )
    user_ids, item_ids = dataset.users[:, 0], dataset.items[:, 0]
    rest = ordered[n : n + n_later]
    users, items = user_ids[rest[USER_INDEX]].to_list(), item_ids[rest[ITEM_INDEX]].to_list()
    return known, Later(users, items, rest[TIMESTAMP].to_list())


def export(known: Dataset, model: str, seed: int, folder: Path) -> Path:
    """Trains ``model`` with its defaults and returns its bundle."""
    run = trained_run(folder / "run", run_config(model, "leave-one-out", {"seed": seed}), known)
    export_run(run, folder / "bundle")
    return folder / "bundle"


class Replay:
    """One engine that goes through the later events."""

    def __init__(self, bundle: Path, arm: str) -> None:
        self._observed = ObservedEvents(max_users=10_000, max_items=1000)
        self._is_live = arm != FROZEN
        self._learner: Learner | None = None
        self._seq = 0

        def stage(bundle: Bundle) -> OnlineStage:
            config = LEARNERS[arm]
            vectors = ItemVectors(bundle.item_embeddings)
            self._learner = Learner(bundle.catalogue.vocabulary, vectors, config)
            return OnlineStage(self._learner, config, str)

        online = stage if arm in LEARNERS else None
        self._engine = Engine.load(bundle, observed=self._observed, online=online)
        self._rated: dict[str, list[str]] = {}
        self.seen = Seen()

    def step(self, user: str, item: str, time: int) -> None:
        """Asks for the user's slate, then lets the user rate the item."""
        rated = self._rated.setdefault(user, [])
        slate = self._engine.recommend(
            Request(user_id=user, k=K, exclude=() if self._is_live else tuple(rated))
        )
        shown = [one.item_id for one in slate.items]
        self.seen.slates.append(shown)
        self.seen.hits.append(float(item in shown))
        self.seen.gains.append(1.0 / np.log2(shown.index(item) + 2.0) if item in shown else 0.0)
        rated.append(item)
        self.record(slate, user, item, time)

    def record(self, slate: Slate, user: str, item: str, time: int) -> None:
        """Observes the event; the learner gets the slate too, and the click where it was in it."""
        if self._is_live:
            self._observed.observe(user, item, time)
        if self._learner is not None:
            is_hit = any(one.item_id == item for one in slate.items)
            slate_id = slate.slate_id if is_hit else ""
            about: dict[str, Any] = {"user_id": user, "timestamp": time, "purposes": EVERY_PURPOSE}
            click = new_event(item_id=item, slate_id=slate_id, **about)
            self.learn([*impressions(slate, **about), click], time)

    def learn(self, events: Sequence[Event], time: int) -> None:
        """Lets the learner read events as if the log had received them at ``time``."""
        if self._learner is None:
            return
        logged = [LoggedEvent(seq, time, event) for seq, event in enumerate(events, self._seq + 1)]
        self._seq += len(events)
        self._learner.apply(logged, self._seq)

    def attacked_by(self, visit: "Visit", time: int) -> None:
        """Lets an attacker view items, or click on those of them that slates show."""
        user, views = visit.attacker, visit.items
        about: dict[str, Any] = {"user_id": user, "timestamp": time, "purposes": EVERY_PURPOSE}
        if visit.is_first:
            for item in views:
                self._observed.observe(user, item, time)
                self.learn([new_event(item_id=item, action="view", **about)], time)
            return
        for _ in range(SLATES):
            slate = self._engine.recommend(Request(user_id=user, k=K))
            wanted = {item.item_id for item in slate.items} & set(views)
            clicks = [new_event(item_id=item, slate_id=slate.slate_id, **about) for item in sorted(wanted)]
            for item in sorted(wanted):
                self._observed.observe(user, item, time)
            self.learn([*impressions(slate, **about), *clicks], time)

    def close(self) -> None:
        """Ends the engine."""
        self._engine.close()


def replay(bundle: Path, later: Later, arm: str, attack: "Attack | None" = None) -> Seen:
    """Goes through the later events; with an attack, its sessions come in between."""
    one = Replay(bundle, arm)
    visits = {} if attack is None else attack.visits(len(later.users))
    for i, event in enumerate(zip(later.users, later.items, later.times, strict=True)):
        for visit in visits.get(i, ()):
            one.attacked_by(visit, event[2])
        one.step(*event)
    one.close()
    return one.seen


class Visit(NamedTuple):
    """One of the two of an attacker, who views ``items`` first and clicks on others then."""

    attacker: str
    items: list[str]
    is_first: bool


@dataclass(frozen=True, slots=True)
class Attack:
    """Who promotes ``target``, with which popular items beside it."""

    target: str
    popular: tuple[str, ...]
    n_attackers: int
    seed: int

    def visits(self, n_steps: int) -> dict[int, list[Visit]]:
        """Returns who comes before which step."""
        rng = np.random.default_rng(self.seed)
        found: dict[int, list[Visit]] = {}
        for attacker in range(self.n_attackers):
            steps = np.sort(rng.integers(n_steps, size=2)).tolist()
            items = rng.permutation(self.popular).tolist()
            # Clicks on what they viewed would teach nothing.
            viewed, clicked = items[: len(items) // 2], [*items[len(items) // 2 :], self.target]
            for step, visit in zip(steps, ((viewed, True), (clicked, False)), strict=True):
                found.setdefault(step, []).append(Visit(f"attacker-{attacker}", *visit))
        return found


def difference(a: NDArray[np.float64], b: NDArray[np.float64], users: Sequence[str]) -> dict[str, float]:
    """Returns the mean of a − b over events and its 95 % interval over users drawn anew."""
    _, user = np.unique(users, return_inverse=True)
    counts, sums = np.bincount(user), np.bincount(user, a - b)
    drawn = np.random.default_rng(0).integers(0, len(counts), (N_BOOTSTRAP, len(counts)))
    low, high = np.percentile(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1), [2.5, 97.5])
    return {"mean": float((a - b).mean()), "low": float(low), "high": float(high)}


def measure(dataset: Dataset, model: str, seed: int, n_targets: int, n_later: int) -> dict[str, Any]:
    """Replays every arm, then the attacks."""
    known, later = cut(dataset, n_later)
    with tempfile.TemporaryDirectory() as folder:
        bundle = export(known, model, seed, Path(folder))
        seen = {arm: replay(bundle, later, arm) for arm in (FROZEN, LIVE, *LEARNERS)}
        hits = {arm: np.array(one.hits) for arm, one in seen.items()}
        gains = {arm: np.array(one.gains) for arm, one in seen.items()}
        attacks = [
            attacked(bundle, known, later, arm, seen[arm], seed + i)
            for arm in PROMISED
            for i in range(n_targets)
        ]
    pairs = [(LIVE, FROZEN), *((arm, FROZEN) for arm in LEARNERS), *((arm, LIVE) for arm in LEARNERS)]
    return {
        "replayed": f"{dataset.name}, {model}, seed {seed}: what follows the first {KNOWN:.0%}, in its order",
        "n_events": len(later.users),
        "n_users": len(set(later.users)),
        "n_new_users": len(set(later.users) - _users_of(known)),
        "arms": {
            arm: {"HR@10": float(hits[arm].mean()), "NDCG@10": float(gains[arm].mean())} for arm in hits
        },
        "hr_gain": {f"{a} over {b}": difference(hits[a], hits[b], later.users) for a, b in pairs},
        "attacks": attacks,
    }


def _users_of(known: Dataset) -> set[str]:
    return set(known.users[:, 0][known.interactions[USER_INDEX].unique()].to_list())


def attacked(bundle: Path, known: Dataset, later: Later, arm: str, before: Seen, seed: int) -> dict[str, Any]:
    """Returns how often genuine slates have a target without (``before``) and with the attack; its cost."""
    counts = np.bincount(known.interactions[ITEM_INDEX].to_numpy(), minlength=known.n_items)
    ids, order = known.items[:, 0], np.argsort(-counts, kind="stable")
    n_known = int((counts > 0).sum())
    # Four in a hundred items are the filler.
    n_popular = known.n_items // 25
    target = int(order[np.random.default_rng(seed).integers(n_popular, n_known // 2)])
    popular = tuple(ids[int(item)] for item in order[:n_popular])
    attack = Attack(ids[target], popular, round(ATTACKERS * known.n_users), seed)
    after = replay(bundle, later, arm, attack)
    return {
        "learner": arm,
        "target": attack.target,
        "interactions": int(counts[target]),
        "n_attackers": attack.n_attackers,
        "target_hr": before.share_with(attack.target),
        "target_hr_attacked": after.share_with(attack.target),
        "genuine_ndcg_loss": float(1 - np.mean(after.gains) / np.mean(before.gains)),
        "genuine_ndcg_difference": difference(np.array(before.gains), np.array(after.gains), later.users),
    }


def holds(models: dict[str, Any]) -> dict[str, bool]:
    """Returns which promises the replays keep, for every model."""
    gains = [one["hr_gain"] for one in models.values()]
    attacks = [attack for one in models.values() for attack in one["attacks"]]
    return {
        f"online learning and live history gain {MIN_GAIN:g} of HR@10 over the frozen model": all(
            gain[f"{arm} over {FROZEN}"]["low"] >= MIN_GAIN for gain in gains for arm in PROMISED
        ),
        "online learning gains over live history": all(
            gain[f"{arm} over {LIVE}"]["low"] > 0 for gain in gains for arm in PROMISED
        ),
        "an attacked target gains 0.5 percentage points and threefold at most": all(map(_is_held, attacks)),
        "genuine users lose 1 % of NDCG@10 at most": all(
            one["genuine_ndcg_loss"] <= MAX_GENUINE_LOSS for one in attacks
        ),
    }


def _is_held(attack: dict[str, Any]) -> bool:
    before, after = attack["target_hr"], attack["target_hr_attacked"]
    many_times = before >= SEEN_TARGET and after > MAX_TARGET_TIMES * before
    return bool(after - before <= MAX_TARGET_RISE and not many_times)


def show(result: dict[str, Any]) -> None:
    """Prints the tables of the result."""
    from recserve.benchmarks.tables import show as show_tables

    show_tables(result)
    for name, is_kept in result["holds"].items():
        console.note(f"{name}: {'yes' if is_kept else 'NO'}")


def main() -> int:
    """Measures, writes the result, and returns 1 when a promise did not hold."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["als", "sasrec"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--events", type=int, default=10_000, help="to be replayed, at most")
    parser.add_argument("--targets", type=int, default=3, help="attacks, each on another item")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--json", action="store_true", help="print JSON instead of the tables")
    options = parser.parse_args()
    machine = environment(("torch", "numpy"))
    console.note(machine_line(machine))
    dataset = load_dataset("ml-100k", on_note=console.note)
    models: dict[str, Any] = {}
    for model in options.models:
        models[model] = measure(dataset, model, options.seed, options.targets, options.events)
        console.note(f"{model}: {models[model]}")
    result = {"environment": machine, "online_models": models, "holds": holds(models)}
    Output(options.out, json=options.json).publish("online_quality", result, show)
    return 0 if all(result["holds"].values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
