"""Fixtures shared by all tests: one small shop, trained for a moment and exported once per test run."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import structlog
from hypothesis import settings

from recserve.engine import cli
from recserve.engine.engine import Engine
from tests.once import made_once

# The same examples in every run, and no time limit on one: another program may hold the cores.
settings.register_profile("recserve", derandomize=True, deadline=None)
settings.load_profile("recserve")

SHOP = "synthetic-shop:n_items=1000,n_users=120,n_events=4000,seed=7"


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A folder that all worker processes of one test run share."""
    base = tmp_path_factory.getbasetemp()
    return base if worker_id == "master" else base.parent


@pytest.fixture(scope="session")
def run_folder(shared_folder: Path) -> Path:
    """A run of SASRec on a small synthetic shop: two epochs, enough to have real weights."""
    from recserve.training.data import load_dataset
    from recserve.training.distributed import Processes
    from recserve.training.loop import Trainer
    from recserve.training.loop_config import LoopConfig
    from recserve.training.models.sasrec import SASRecConfig
    from recserve.training.run import RunConfig, create_run

    folder = shared_folder / "run"
    with made_once(folder) as is_missing:
        if is_missing:
            config = RunConfig(
                model="sasrec",
                shape=SASRecConfig(embedding_size=16, n_blocks=1, n_heads=2, max_history=12),
                loop=LoopConfig(epochs=2, batch_size=32, validate_every=1, seed=3),
            )
            run = create_run(folder.with_name("run.partial"), config, load_dataset(SHOP))
            Trainer(run.new_model(), run.split(), run.folder, config.loop, Processes()).fit()
            run.folder.rename(folder)
    return folder


@pytest.fixture(scope="session")
def bundle_folder(run_folder: Path, shared_folder: Path) -> Path:
    """The bundle of ``run_folder``. Read-only by convention: copy it before breaking it."""
    from recserve.exporters.assemble import export_run
    from recserve.training.run import open_run

    folder = shared_folder / "bundle"
    with made_once(folder) as is_missing:
        if is_missing:
            export_run(open_run(run_folder), folder)
    return folder


@pytest.fixture(scope="session")
def ranker_run_folder(shared_folder: Path) -> Path:
    """A run of DeepFM on the same shop, of clicks and ratings."""
    import torch

    from recserve.training.commands import run_config
    from recserve.training.data import load_dataset
    from recserve.training.loop import Trainer
    from recserve.training.run import create_run

    folder = shared_folder / "ranker-run"
    # The shop's labels are noise, which a calibration would see: every probability would be the mean.
    settings = {"labels": "ratings", "click_at": 2.0, "calibration": "none", "epochs": 2, "batch_size": 512}
    settings |= {"embedding_size": 8, "hidden": (16, 8), "max_history": 6, "seed": 3}
    with made_once(folder) as is_missing:
        if is_missing:
            config = run_config("deepfm", "temporal", settings)
            run = create_run(folder.with_name("ranker-run.partial"), config, load_dataset(SHOP))
            torch.manual_seed(3)
            Trainer(run.new_model(), run.split(), run.folder, config.loop).fit()
            run.folder.rename(folder)
    return folder


@pytest.fixture(scope="session")
def two_stage_folder(run_folder: Path, ranker_run_folder: Path, shared_folder: Path) -> Path:
    """The bundle of ``run_folder`` with the ranker of ``ranker_run_folder`` behind it."""
    from recserve.exporters.assemble import export_run
    from recserve.training.run import open_run

    folder = shared_folder / "two-stage"
    with made_once(folder) as is_missing:
        if is_missing:
            export_run(open_run(run_folder), folder, ranker=open_run(ranker_run_folder))
    return folder


@pytest.fixture(scope="session")
def als_run_folder(shared_folder: Path) -> Path:
    """A run of ALS on the same shop."""
    from recserve.training.commands import run_config
    from recserve.training.data import load_dataset
    from recserve.training.loop import Trainer
    from recserve.training.run import create_run

    folder = shared_folder / "als-run"
    with made_once(folder) as is_missing:
        if is_missing:
            config = run_config("als", "leave-one-out", {"embedding_size": 16, "epochs": 3, "seed": 3})
            run = create_run(folder.with_name("als-run.partial"), config, load_dataset(SHOP))
            Trainer(run.new_model(), run.split(), run.folder, config.loop).fit()
            run.folder.rename(folder)
    return folder


@pytest.fixture(scope="session")
def table_bundle_folder(als_run_folder: Path, shared_folder: Path) -> Path:
    """The bundle of ``als_run_folder``: a user table with fold-in. Copy it before breaking it."""
    from recserve.exporters.assemble import export_run
    from recserve.training.run import open_run

    folder = shared_folder / "table-bundle"
    with made_once(folder) as is_missing:
        if is_missing:
            export_run(open_run(als_run_folder), folder)
    return folder


@pytest.fixture
def engine(bundle_folder: Path) -> Iterator[Engine]:
    """A fresh engine over the shared bundle: what a test observes, no other test sees."""
    with Engine.load(bundle_folder) as engine:
        yield engine


@pytest.fixture
def run_cli(capfd: pytest.CaptureFixture[str]) -> Iterator[Callable[..., tuple[int, str, str]]]:
    """Runs the command line in this process; returns exit code, stdout, stderr."""
    umask = os.umask(0o022)
    os.umask(umask)

    def call(*arguments: object) -> tuple[int, str, str]:
        try:
            cli.main([str(argument) for argument in arguments])
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        out, err = capfd.readouterr()
        return code, out, err

    yield call
    # A verb owns its process: it sends the log to a stderr that ends with this test, and hides its files.
    structlog.reset_defaults()
    os.umask(umask)


@pytest.fixture(scope="module")
def one_torch_thread() -> Iterator[None]:
    """Small tables are slower with threads, which wait for each other actively."""
    import torch

    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)
