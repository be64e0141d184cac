"""From the log and the run before to a bundle that answers, if it is better than the one that does."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import polars as pl
import structlog
import torch

from recserve.engine.bundle.reader import read_manifest
from recserve.engine.bundle.signing_keys import SigningKey
from recserve.engine.models.repository import FoundBundle, Repository
from recserve.engine.state.config import StateConfig
from recserve.engine.state.opening import pseudonyms
from recserve.engine.state.state import read_log
from recserve.errors import DataError, InvalidRequest
from recserve.exporters.assemble import export_run
from recserve.exporters.item_encoder import NoItemEncoder
from recserve.exporters.retraining.carry_over import carry_over
from recserve.exporters.retraining.contest import Case, Contest, cases, contest
from recserve.exporters.retraining.log_events import learnable, with_events
from recserve.training.data.columns import TIMESTAMP, USER_ID
from recserve.training.loop import EpochReport, Trainer
from recserve.training.models.base import FittedModel
from recserve.training.run import Run, create_run, open_run

log = structlog.get_logger("recserve.retrain")

# Fewer users say too little to replace anything.
MIN_USERS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrainConfig:
    """``run``: the one before · ``out``: folder of the new one · ``since``: seconds since the epoch, of the
    first event to learn from · ``holdout``: share of the log's newest events that both are judged by ·
    ``epochs``: 0 for those of the run before · ``signing_key``: signs the new bundle.
    """

    run: Path
    out: Path
    state: StateConfig
    repository: Path
    model: str
    since: int = 0
    holdout: float = 0.2
    epochs: int = 0
    signing_key: SigningKey | None = None


@dataclass(frozen=True, slots=True)
class Retrained:
    """What came of it. ``bundle``: the new one in the repository, None where it did not win."""

    n_events: int
    n_held_out: int
    carried_over: bool
    serving: str
    contest: Contest
    bundle: FoundBundle | None


def retrain(
    config: RetrainConfig, on_epoch: Callable[[EpochReport], None] = lambda report: None
) -> Retrained:
    """Trains on the log but for its newest slice, compares there, and puts the bundle into the repository.

    Only a winner gets there, with the rules of the bundle that it follows. Raises :class:`DataError` where
    the log says too little, :class:`InvalidRequest` where that bundle has a ranker, which this does not make.
    """
    before = open_run(config.run)
    repository = Repository(config.repository)
    serving = _serving(repository, config.model)
    if read_manifest(serving.folder).ranker is not None:
        raise InvalidRequest(
            f"bundle {serving.version}",
            found="with a ranker",
            expected="one without: a new version would have none",
            cure="Train the ranker again and export both with --ranker.",
        )
    older, newest = _events(config, before)
    known = with_events(before.dataset, older)
    found = cases(known, newest)
    if len(found) < MIN_USERS:
        raise DataError(
            "newest slice",
            found=f"{len(found)} users who did something new",
            expected=f"{MIN_USERS} or more",
            cure="Wait for more events, or give a larger --holdout.",
        )
    loop = dataclasses.replace(before.config.loop, epochs=config.epochs or before.config.loop.epochs)
    run = create_run(config.out, dataclasses.replace(before.config, loop=loop), known)
    is_carried = _train(run, before, on_epoch)
    return _compare(repository, config, run, serving, found, (len(older), len(newest)), is_carried)


def _compare(
    repository: Repository,
    config: RetrainConfig,
    run: Run,
    serving: FoundBundle,
    found: list[Case],
    n_events: tuple[int, int],
    is_carried: bool,
) -> Retrained:
    with repository.staging() as folder:
        bundle = folder / "bundle"
        before = read_manifest(serving.folder)
        export = partial(export_run, run, bundle, pipeline=before.pipeline, signing_key=config.signing_key)
        try:
            export(item_encoder=before.item_encoder is not None)
        except NoItemEncoder as error:
            log.warning("the new version leaves items out that come without a vector", error=str(error))
            export()
        result = contest(serving.folder, bundle, found)
        version = read_manifest(bundle).bundle_version
        adopted = repository.adopt(bundle, config.model, version) if result.is_won else None
    return Retrained(*n_events, is_carried, serving.version, result, adopted)


def _serving(repository: Repository, model: str) -> FoundBundle:
    """Returns the bundle that answers, or would: what active.json says, else the newest."""
    wanted = repository.read_desired().models.get(model)
    bundles = [bundle for bundle in repository.bundles() if bundle.model == model]
    if wanted is not None:
        bundles = [bundle for bundle in bundles if bundle.version == wanted.route.arms[0].version]
    if not bundles:
        raise DataError(f"model {model}", found="without a bundle", expected="one to compare with")
    return bundles[-1]


def _events(config: RetrainConfig, before: Run) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Returns the events to learn from and those to judge by."""
    known = before.dataset.users[USER_ID].to_list()
    names = dict(zip(pseudonyms(config.state, known), known, strict=True))
    events = learnable(read_log(config.state), names, config.since)
    cut = events[TIMESTAMP].quantile(1 - config.holdout, "lower") if len(events) else None
    if cut is None:
        raise DataError("log", found="without events to learn from", expected="events of purpose learn")
    # Events of one second are never parted.
    return events.filter(pl.col(TIMESTAMP) <= cut), events.filter(pl.col(TIMESTAMP) > cut)


def _train(run: Run, before: Run, on_epoch: Callable[[EpochReport], None]) -> bool:
    """Trains from what the run before learned; returns whether that was possible."""
    torch.manual_seed(run.config.loop.seed)
    model = run.new_model()
    # One that solves its tables begins anew with every epoch.
    is_carried = not isinstance(model, FittedModel) and not carry_over(
        model, before.best_model(), run.dataset, before.dataset
    )
    Trainer(model, run.split(), run.folder, run.config.loop).fit(on_epoch)
    return is_carried
