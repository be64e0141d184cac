"""A search for settings: Optuna proposes, ``recserve train`` tries in a process of its own.

The study is a journal in the folder of the sweep: a killed sweep goes on where it was, and what was being
tried is tried again.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from recserve.errors import CheckFailed, ConfigError, InvalidRequest
from recserve.files import write_whole
from recserve.training.run import open_run

JOURNAL, SPACE = "study.jsonl", "space"
RANGE_KEYS = {"low", "high", "log"}


@dataclass(frozen=True, slots=True)
class Sweep:
    """``options``: of every trial, by the names of ``train``; ``space``: name → list of values, or a range.

    A range is ``{low, high, log}``; of two whole numbers it is one of whole numbers.
    """

    folder: Path
    options: dict[str, Any]
    space: dict[str, Any]
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.space:
            raise ConfigError("section [sweep]", found="empty", expected="options with lists or ranges")
        for name, values in self.space.items():
            if isinstance(values, dict):
                numbers = all(isinstance(values.get(key), int | float) for key in ("low", "high"))
                if not numbers or not values.keys() <= RANGE_KEYS or not values["low"] < values["high"]:
                    raise _refusal(name, values)
            elif not isinstance(values, list) or not values:
                raise _refusal(name, values)

    def run(self, n_trials: int, on_trial: Callable[[FrozenTrial], None] = lambda trial: None) -> list[Any]:
        """Goes on until ``n_trials`` are done; returns the finished ones, the best first.

        Raises :class:`InvalidRequest` where the folder holds a sweep over another space,
        :class:`CheckFailed` when every trial fails.
        """
        if n_trials < 1:
            raise InvalidRequest("n_trials", found=n_trials, expected="1 or more")
        study = self._study()
        while (n_left := n_trials - len(_ended(study))) > 0:
            study.optimize(
                self._try, n_trials=n_left, catch=(CheckFailed,), callbacks=[lambda _, t: on_trial(t)]
            )
        done = [trial for trial in _ended(study) if trial.value is not None]
        if not done:
            raise CheckFailed(
                "trials", found="all failed", expected="one that trains", cure="See their log.txt."
            )
        return sorted(done, key=lambda trial: -float(trial.value or 0))

    def _study(self) -> optuna.Study:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.folder.mkdir(parents=True, exist_ok=True)
        storage = JournalStorage(JournalFileBackend(str(self.folder / JOURNAL)))
        study = optuna.create_study(
            storage=storage, study_name="sweep", direction="maximize", load_if_exists=True
        )
        begun = study.user_attrs.get(SPACE)
        space = json.loads(json.dumps({"options": self.options, "sweep": self.space}))
        if begun is not None and begun != space:
            raise InvalidRequest(
                f"sweep in {self.folder}",
                found="over another space",
                expected="the same",
                cure="Choose another --out.",
            )
        study.set_user_attr(SPACE, space)
        for trial in study.get_trials(states=(TrialState.RUNNING,)):
            # In this order: killed between two of them, a trial is tried once more and never lost.
            study.set_user_attr("killed", [*study.user_attrs.get("killed", []), trial.number])
            study.enqueue_trial(trial.params)
            study.tell(trial.number, state=TrialState.FAIL)
        # Another seed after a resume: the same one would propose the same first points again.
        study.sampler = optuna.samplers.TPESampler(seed=self.seed + len(study.trials))
        return study

    def _try(self, trial: optuna.Trial) -> float:
        chosen = {name: _suggest(trial, name, values) for name, values in self.space.items()}
        folder = self.folder / f"trial-{trial.number:04}"
        config = folder.with_name(f"{folder.name}.toml")
        # JSON's texts, numbers and truths are TOML's.
        lines = [f"{name} = {json.dumps(value)}" for name, value in {**self.options, **chosen}.items()]
        write_whole(config, "\n".join(lines).encode())
        command = [sys.executable, "-m", "recserve.engine.cli", "train", "--config", str(config)]
        finished = subprocess.run(
            [*command, "--out", str(folder), "--overwrite"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        if finished.returncode:
            self.folder.joinpath(f"{folder.name}.log.txt").write_text(finished.stderr, encoding="utf-8")
            last = finished.stderr.strip().rpartition("\n")[2]
            raise CheckFailed(f"trial {trial.number}", found=last or "failed", expected="a run that trains")
        run = open_run(folder)
        metric = run.best_model().validation_metric
        value = run.best_progress().best_metric
        trial.set_user_attr("metric", metric.name)
        trial.set_user_attr("validation", value)
        return value if metric.higher_is_better else -value


def _ended(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that were tried to their end, those that failed among them."""
    killed = study.user_attrs.get("killed", [])
    ended = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.FAIL))
    return [trial for trial in ended if trial.number not in killed]


def _suggest(trial: optuna.Trial, name: str, values: Any) -> Any:
    if isinstance(values, list):
        return trial.suggest_categorical(name, values)
    low, high, log = values["low"], values["high"], bool(values.get("log", False))
    if isinstance(low, int) and isinstance(high, int):
        return trial.suggest_int(name, low, high, log=log)
    return trial.suggest_float(name, low, high, log=log)


def _refusal(name: str, found: object) -> ConfigError:
    return ConfigError(
        f"[sweep] {name}", found=found, expected="a list of values or {low = …, high = …, log = true}"
    )
