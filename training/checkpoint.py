"""Checkpoints as safetensors: weights, optimiser state and progress, written by temp + fsync + rename."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from recserve.errors import DataError
from recserve.files import write_whole

MODEL_PREFIX = "model."
OPTIMIZER_PREFIX = "optimizer."
PROGRESS_KEY = "progress"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a training run is: epochs done, the best validation metric and when it was reached."""

    epoch: int = 0
    best_metric: float = -1.0
    best_epoch: int = 0


def save_checkpoint(
    path: Path, model: nn.Module, progress: Progress, optimizer: torch.optim.Optimizer | None = None
) -> None:
    """Writes a checkpoint atomically; a kill at any moment leaves the old one or the new one."""
    tensors = {MODEL_PREFIX + name: value.contiguous() for name, value in model.state_dict().items()}
    if optimizer is not None:
        tensors |= _optimizer_tensors(optimizer)
    write_whole(path, save(tensors, metadata={PROGRESS_KEY: json.dumps(asdict(progress))}))


def read_progress(path: Path) -> Progress:
    """Returns the progress in a checkpoint alone; raises :class:`DataError` for a damaged file."""
    try:
        with safe_open(path, framework="pt") as file:
            return Progress(**json.loads((file.metadata() or {})[PROGRESS_KEY]))
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"checkpoint {path}", found="unreadable", expected="a checkpoint of recserve", cure="Train again."
        ) from error


def load_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> Progress:
    """Reads weights (and the optimiser's state when asked) in place; returns the progress.

    Raises :class:`DataError` for a damaged file or one of another model shape.
    """
    progress = read_progress(path)
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    weights = {
        name.removeprefix(MODEL_PREFIX): value
        for name, value in tensors.items()
        if name.startswith(MODEL_PREFIX)
    }
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise DataError(
            f"checkpoint {path}", found="of another shape", expected="the shape of run.json"
        ) from error
    if optimizer is not None:
        _load_optimizer(optimizer, tensors, path)
    return progress


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    return {
        f"{OPTIMIZER_PREFIX}{index}.{name}": torch.as_tensor(value)
        for index, values in state.items()
        for name, value in values.items()
    }


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], path: Path) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith(OPTIMIZER_PREFIX):
            index, key = name.removeprefix(OPTIMIZER_PREFIX).split(".", 1)
            state.setdefault(int(index), {})[key] = value
    if not state:
        raise DataError(f"checkpoint {path}", found="without optimiser state", expected="one that can go on")
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
