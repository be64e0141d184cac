"""A run folder: what was trained, on what, how far. ``train`` fills it, ``evaluate`` and ``export`` read it.

run.json  dataset/  last.safetensors  best.safetensors  epochs.jsonl  evaluation.json
"""

import dataclasses
import hashlib
import json
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import recserve
from recserve.errors import DataError, InvalidRequest
from recserve.files import write_whole
from recserve.training.checkpoint import Progress, load_checkpoint, read_progress
from recserve.training.data import Dataset, Split, leave_one_out, random_split, temporal_split
from recserve.training.data.warnings import data_warnings
from recserve.training.loop import BEST
from recserve.training.loop_config import LoopConfig
from recserve.training.models import family_of
from recserve.training.models.base import RankingModel
from recserve.training.models.content import settle
from recserve.training.models.sequence import SequenceModel

RUN_FILE, DATASET_FOLDER, EVALUATION_FILE = "run.json", "dataset", "evaluation.json"
SPLITS = {"leave-one-out": leave_one_out, "temporal": temporal_split, "random": random_split}


@dataclass(frozen=True, slots=True)
class RunConfig:
    """Everything that defines a run besides its data."""

    model: str
    shape: Any
    """The settings of the model family, see ``Family.settings``."""
    loop: LoopConfig
    split: str = "leave-one-out"
    data: str = ""
    """The data set as it was named when the run began."""
    code_version: str = recserve.__version__

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise InvalidRequest("split", found=self.split, expected=f"one of {', '.join(SPLITS)}")

    def as_dict(self) -> dict[str, Any]:
        """Returns plain values for JSON."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, slots=True)
class Run:
    """An open run folder."""

    folder: Path
    config: RunConfig
    dataset: Dataset

    def split(self) -> Split:
        """Returns the run's split of its dataset; the same every time."""
        split: Split = SPLITS[self.config.split](self.dataset)
        return split

    def warnings(self) -> dict[str, int]:
        """Returns what is odd in the data and its split, and how often; see ``data_warnings``."""
        return data_warnings(self.dataset, self.split())

    def new_model(self) -> RankingModel:
        """Returns an untrained model of the run's shape; the caller seeds torch."""
        return new_model(self.config, self.dataset, self.split())

    def best_model(self) -> RankingModel:
        """Returns the model with the best validation metric; :class:`DataError` before there is one."""
        if not (self.folder / BEST).is_file():
            raise DataError(
                f"run {self.folder}",
                found="not trained yet",
                expected=BEST,
                cure="Run `recserve train` first.",
            )
        model = self.new_model()
        load_checkpoint(self.folder / BEST, model)
        model.eval()
        if isinstance(model, SequenceModel):
            settle(model)
        return model

    def best_progress(self) -> Progress:
        """Returns the best validation metric and its epoch; :class:`DataError` before there is one."""
        return read_progress(self.folder / BEST)

    def checkpoint_sha256(self) -> str:
        """Returns the SHA-256 of the file of the best weights, as hex."""
        return hashlib.sha256((self.folder / BEST).read_bytes()).hexdigest()

    def read_evaluation(self) -> dict[str, Any] | None:
        """Returns what ``evaluate`` wrote, if it ran on the weights that are the best now."""
        path = self.folder / EVALUATION_FILE
        if not path.is_file():
            return None
        evaluation: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return evaluation if evaluation.get("checkpoint_sha256") == self.checkpoint_sha256() else None

    def write_evaluation(self, evaluation: dict[str, Any]) -> None:
        """Stores the result of ``evaluate``, all or nothing."""
        write_json(self.folder / EVALUATION_FILE, evaluation)


def new_model(config: RunConfig, dataset: Dataset, split: Split) -> RankingModel:
    """Returns an untrained model for ``split`` of ``dataset``; the caller seeds torch."""
    family = family_of(config.model)
    if family.create_from_data is not None:
        return family.create_from_data(config.shape, dataset, split)
    return family.create(config.shape, dataset.n_users, dataset.n_items)


def create_run(
    folder: Path, config: RunConfig, dataset: Dataset, *, overwrite: bool = False, data: str = ""
) -> Run:
    """Makes a run folder; raises :class:`InvalidRequest` when it is there, unless it may be overwritten."""
    if folder.exists():
        if not overwrite or not (folder / RUN_FILE).is_file():
            raise InvalidRequest(
                f"run folder {folder}",
                found="there already",
                expected="a new folder",
                cure="Choose another --out, go on with --resume, or start again with --overwrite.",
            )
        shutil.rmtree(folder)
    config = dataclasses.replace(config, data=data)
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Renamed when it is complete: a kill leaves no folder that looks like a run.
    partial = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.partial")
    partial.mkdir()
    try:
        dataset.save(partial / DATASET_FOLDER)
        write_json(partial / RUN_FILE, config.as_dict())
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return Run(folder, config, dataset)


def open_run(folder: Path) -> Run:
    """Opens a run folder; raises :class:`DataError` when it is not one."""
    try:
        raw = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
        config = RunConfig(
            model=raw["model"],
            shape=family_of(raw["model"]).settings(**raw["shape"]),
            loop=LoopConfig(**raw["loop"]),
            split=raw["split"],
            data=raw["data"],
            code_version=raw["code_version"],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"run {folder}",
            found="without a readable run.json",
            expected="a folder that `recserve train` wrote",
            cure="Check the path.",
        ) from error
    return Run(folder, config, Dataset.load(folder / DATASET_FOLDER))


def resume_run(folder: Path, wanted: RunConfig, data: str) -> Run:
    """Opens a run to go on with it; the budget may change, nothing else.

    Raises :class:`InvalidRequest` for another setting or another data set than the run began with.
    """
    run = open_run(folder)
    loop = dataclasses.replace(run.config.loop, patience=wanted.loop.patience)
    # Of a private run the noise was computed for its epochs: more of them would break its ε.
    if not loop.epsilon:
        loop = dataclasses.replace(loop, epochs=wanted.loop.epochs)
    config = dataclasses.replace(run.config, loop=loop)
    begun = _flat(dataclasses.replace(config, code_version=wanted.code_version))
    for name, value in _flat(dataclasses.replace(wanted, data=data)).items():
        if value != begun[name]:
            raise InvalidRequest(
                f"{name} of the resumed run",
                found=value,
                expected=f"{begun[name]}, as it began",
                cure="Choose another --out, or start again with --overwrite.",
            )
    write_json(folder / RUN_FILE, config.as_dict())
    return Run(folder, config, run.dataset)


def _flat(config: RunConfig) -> dict[str, Any]:
    values = config.as_dict()
    # A name that both have is the family's own: the loop's cannot be set there.
    return {**values.pop("loop"), **values.pop("shape"), **values}


def write_json(path: Path, value: Any) -> None:
    """Writes JSON, whole or not at all."""
    write_whole(path, json.dumps(value, indent=2, ensure_ascii=False).encode())
