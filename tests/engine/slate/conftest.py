"""Engines that the laws of slates ask many times."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from recserve.engine import Engine
from recserve.training.run import Run
from tests.conftest import SHOP


@pytest.fixture(scope="module")
def shop(bundle_folder: Path) -> Iterator[Engine]:
    """One engine for a module: its tests observe nothing."""
    with Engine.load(bundle_folder) as engine:
        yield engine


@pytest.fixture(scope="module")
def segmented_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of ALS on the shop, whose users have an age and a country, some of them unknown."""
    from recserve.training.commands import run_config
    from recserve.training.data import load_dataset
    from recserve.training.loop import Trainer
    from recserve.training.run import create_run

    dataset = load_dataset(SHOP)
    number = np.arange(dataset.n_users)
    countries = pl.Series(["DE", "FR", "DE", None])[number % 4]
    users = dataset.users.with_columns(age=pl.Series(20 + number % 37), country=countries)
    config = run_config("als", "leave-one-out", {"embedding_size": 8, "epochs": 2, "seed": 3})
    folder = tmp_path_factory.mktemp("segmented") / "run"
    run = create_run(folder, config, dataclasses.replace(dataset, users=users))
    Trainer(run.new_model(), run.split(), run.folder, config.loop).fit()
    return run


@pytest.fixture(scope="module")
def segmented_folder(segmented_run: Run) -> Path:
    """The bundle of ``segmented_run``; only countries have enough users, ages and hours are named too."""
    from recserve.exporters.assemble import export_run

    folder = segmented_run.folder.with_name("bundle")
    export_run(segmented_run, folder, segments=["country", "age", "hour"])
    return folder


@pytest.fixture(scope="module")
def mixed(segmented_folder: Path) -> Iterator[Engine]:
    """One engine with all sources for a module."""
    with Engine.load(segmented_folder) as engine:
        yield engine
