"""What follows a training epoch by epoch: TensorBoard, MLflow, or anything with the same two methods."""

import importlib.util
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from recserve.errors import ConfigError, InvalidRequest, nearest
from recserve.files import write_whole
from recserve.training.loop import EpochReport
from recserve.training.run import Run

TENSORBOARD_FOLDER, MLFLOW_RUN_FILE = "tensorboard", "mlflow_run_id"


class Tracker(Protocol):
    """Told of every epoch, and once of the end."""

    def epoch(self, report: EpochReport, metric_name: str) -> None:
        """Takes the loss and, where the epoch was validated, the metric."""
        ...

    def close(self, *, failed: bool) -> None:
        """Writes what is left; nothing follows."""
        ...


class TensorBoard:
    """Scalars in the run folder: ``tensorboard --logdir runs`` shows several runs."""

    def __init__(self, run: Run, first_epoch: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # What a killed process wrote of an epoch that is now done again is hidden.
        self._writer: Any = SummaryWriter(str(run.folder / TENSORBOARD_FOLDER), purge_step=first_epoch)

    def epoch(self, report: EpochReport, metric_name: str) -> None:
        """Adds a point to each curve and writes it out."""
        for name, value in _scalars(report, metric_name).items():
            self._writer.add_scalar(name, value, report.epoch)
        self._writer.flush()

    def close(self, *, failed: bool) -> None:
        """Closes the file."""
        self._writer.close()


class MLflow:
    """A run of MLflow, where ``MLFLOW_TRACKING_URI`` says and of the experiment ``MLFLOW_EXPERIMENT_NAME``.

    A resumed training goes on with its run: its id is in the run folder.
    """

    def __init__(self, run: Run, first_epoch: int) -> None:
        from mlflow import MlflowClient

        self._client: Any = MlflowClient()
        id_file = run.folder / MLFLOW_RUN_FILE
        if first_epoch > 1 and id_file.is_file():
            self._id = id_file.read_text(encoding="utf-8")
            self._client.update_run(self._id, status="RUNNING")
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "recserve")
        experiment = self._client.get_experiment_by_name(name)
        experiment_id = experiment.experiment_id if experiment else self._client.create_experiment(name)
        self._id = self._client.create_run(experiment_id, run_name=run.folder.name).info.run_id
        write_whole(id_file, self._id.encode())
        settings = run.config.as_dict()
        for key, value in {**settings.pop("loop"), **settings.pop("shape"), **settings}.items():
            self._client.log_param(self._id, key, value)
        self._client.set_tag(self._id, "data_sha256", run.dataset.sha256)

    def epoch(self, report: EpochReport, metric_name: str) -> None:
        """Logs each value at the step of its epoch."""
        for name, value in _scalars(report, metric_name).items():
            # MLflow's names have no @.
            self._client.log_metric(self._id, name.replace("@", "_at_"), value, step=report.epoch)

    def close(self, *, failed: bool) -> None:
        """Ends the run."""
        self._client.set_terminated(self._id, "FAILED" if failed else "FINISHED")


TRACKERS: dict[str, Callable[[Run, int], Tracker]] = {"tensorboard": TensorBoard, "mlflow": MLflow}


def check_trackers(names: str) -> list[str]:
    """Returns the trackers named in ``names``, joined by commas; empty for none.

    Raises :class:`InvalidRequest` for an unknown one, :class:`ConfigError` for one that is not installed.
    """
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    for name in wanted:
        if name not in TRACKERS:
            expected = f"of {', '.join(TRACKERS)}"
            raise InvalidRequest("--track", found=name, expected=expected, cure=nearest(name, TRACKERS))
        if importlib.util.find_spec(name) is None:
            cure = f"Run: pip install 'recserve[{name}]'"
            raise ConfigError(f"tracker {name}", found="not installed", expected="its library", cure=cure)
    return wanted


@contextmanager
def tracked(names: Sequence[str], run: Run, first_epoch: int) -> Iterator[list[Tracker]]:
    """Opens the trackers of a training that goes on with ``first_epoch``; closes them however it ends."""
    trackers: list[Tracker] = [TRACKERS[name](run, first_epoch) for name in names]
    failed = True
    try:
        yield trackers
        failed = False
    finally:
        for tracker in trackers:
            tracker.close(failed=failed)


def _scalars(report: EpochReport, metric_name: str) -> dict[str, float]:
    values = {"loss": report.loss, "seconds": report.seconds}
    return values if report.metric is None else {**values, metric_name: report.metric}
