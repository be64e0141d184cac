"""A version is tried by a process of its own: what that saves, and what its faults cost."""

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from recserve.engine import EngineConfig, Request
from recserve.engine.bundle import open_bundle, reader
from recserve.engine.bundle.stamps import Stamps, settled_stamps, stamps_of
from recserve.engine.children import LOW_PRIORITY, run_when_idle
from recserve.engine.models import trial
from recserve.engine.models.manager import ModelManager
from recserve.engine.models.registry import Registry
from recserve.engine.models.repository import Repository
from recserve.engine.models.states import State
from recserve.engine.models.trial import Trials
from recserve.engine.server.models import EngineLoader
from recserve.errors import BundleInvalid, BundleReason, Overloaded, Unavailable
from tests.engine.models.conftest import MODEL
from tests.engine.models.versions import flip_bit

# Of processor time; by the clock ten times as long, for a busy machine.
SECONDS = 60.0


def started(folder: Path, trials: Callable[[Path, EngineConfig], Stamps]) -> ModelManager:
    """A manager that serves v2 and tries what comes next."""
    loader = EngineLoader(EngineConfig())
    manager = ModelManager(Repository(folder), Registry(), loader)
    manager.start()
    loader.trials = trials  # type: ignore[assignment]
    return manager


def answering(manager: ModelManager) -> str:
    with manager.registry.lease() as lease:
        return lease.engine().recommend(Request(k=1)).bundle_version


def failed(manager: ModelManager) -> str:
    """The reason of the one version that failed."""
    [model] = manager.models()
    [reason] = [entry.reason for entry in model.versions if entry.state is State.FAILED]
    return reason


def end_the_trial(number: signal.Signals) -> threading.Thread:
    """Sends ``number`` to the next trial as soon as it is there."""

    def work() -> None:
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            for child in multiprocessing.active_children():
                if child.name == "recserve-trial" and child.pid is not None:
                    os.kill(child.pid, number)
                    return
            time.sleep(0.001)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_what_a_trial_checked_is_not_checked_again_and_answers_the_same(
    repository_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = started(repository_folder, lambda folder, config: {})
    plain.activate(MODEL, "v1")
    manager = started(repository_folder, Trials(SECONDS, 0))
    manager.activate(MODEL, "v2")

    def fail(*_: object) -> None:
        raise AssertionError("looked at again")

    for check in ("_check_files", "_check_content"):
        monkeypatch.setattr(reader, check, fail)
    manager.activate(MODEL, "v1")
    assert answering(manager) == "v1"
    with manager.registry.lease() as tried, plain.registry.lease() as checked:
        for user in tried.engine().user_ids()[:20]:
            request = Request(user_id=user, k=20)
            assert tried.engine().recommend(request).items == checked.engine().recommend(request).items


def test_what_changes_after_its_trial_is_checked_again(repository_folder: Path) -> None:
    trials = Trials(SECONDS, 0)

    def then_damaged(folder: Path, config: EngineConfig) -> Stamps:
        stamps = trials(folder, config)
        flip_bit(folder / "items.arrow")
        return stamps

    manager = started(repository_folder, then_damaged)
    with pytest.raises(BundleInvalid):
        manager.activate(MODEL, "v1")
    assert failed(manager) == BundleReason.FILE_DIGEST
    assert answering(manager) == "v2"


def test_what_a_trial_refuses_is_refused_for_its_reason(repository_folder: Path) -> None:
    flip_bit(repository_folder / MODEL / "v1" / "popularity.npy")
    manager = started(repository_folder, Trials(SECONDS, 0))
    with pytest.raises(BundleInvalid, match="SHA-256 of popularity"):
        manager.activate(MODEL, "v1")
    assert failed(manager) == BundleReason.FILE_DIGEST
    assert answering(manager) == "v2"


def test_where_no_core_is_idle_a_trial_begins_again_at_a_low_priority(
    repository_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def watch(name: str, lower: Callable[[int], None]) -> None:
        def lower_and_look(process_id: int) -> None:
            lower(process_id)
            seen.append((os.sched_getscheduler(process_id), os.getpriority(os.PRIO_PROCESS, process_id)))

        monkeypatch.setattr(trial, name, lower_and_look)

    watch("run_when_idle", trial.run_when_idle)
    watch("run_with_low_priority", trial.run_with_low_priority)
    own = os.getpriority(os.PRIO_PROCESS, 0)
    manager = started(repository_folder, Trials(SECONDS, 1e-3))
    manager.activate(MODEL, "v1")
    assert seen == [(os.SCHED_IDLE, own), (os.SCHED_OTHER, min(own + LOW_PRIORITY, 19))]
    assert answering(manager) == "v1"


def test_where_the_idle_class_is_unknown_a_trial_has_a_low_priority(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EINVAL, "no such policy")

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        run_when_idle(process.pid)
        own = os.getpriority(os.PRIO_PROCESS, 0)
        assert os.getpriority(os.PRIO_PROCESS, process.pid) == min(own + LOW_PRIORITY, 19)
        process.kill()


def test_a_load_without_end_is_given_up(repository_folder: Path) -> None:
    manager = started(repository_folder, Trials(0.05, 0))
    with pytest.raises(BundleInvalid, match="not done after"):
        manager.activate(MODEL, "v1")
    assert failed(manager) == BundleReason.LOAD_TOO_LONG
    assert answering(manager) == "v2"
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(
    ("number", "error", "reason"),
    [
        (signal.SIGSEGV, BundleInvalid, BundleReason.LOAD_CRASHES),
        (signal.SIGXCPU, BundleInvalid, BundleReason.LOAD_TOO_LONG),
        (signal.SIGKILL, Overloaded, "OUT_OF_MEMORY"),
    ],
)
def test_a_bundle_that_ends_its_trial_leaves_what_answers(
    repository_folder: Path, number: signal.Signals, error: type[Exception], reason: str
) -> None:
    manager = started(repository_folder, Trials(SECONDS, 0))
    killer = end_the_trial(number)
    with pytest.raises(error):
        manager.activate(MODEL, "v1")
    killer.join()
    assert failed(manager) == reason
    assert answering(manager) == "v2"


def test_a_server_that_ends_does_not_wait_for_a_trial(repository_folder: Path) -> None:
    trials = Trials(SECONDS, 0)
    closer = threading.Thread(target=lambda: (end_the_trial(signal.SIGSTOP).join(), trials.close()))
    closer.start()
    with pytest.raises(Unavailable, match="shutting down"):
        trials(repository_folder / MODEL / "v1", EngineConfig())
    closer.join()
    with pytest.raises(Unavailable, match="shutting down"):
        trials(repository_folder / MODEL / "v1", EngineConfig())


def test_any_change_of_a_file_shows_in_the_stamps(repository_folder: Path) -> None:
    folder = repository_folder / MODEL / "v1"
    path = folder / "items.arrow"

    def same_size_and_time() -> None:
        before = path.stat()
        flip_bit(path)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    def replaced() -> None:
        other = folder / "other"
        other.write_bytes(path.read_bytes())
        other.replace(path)

    changes: list[Callable[[], object]] = [
        same_size_and_time,
        replaced,
        lambda: os.link(path, folder.parent / "second name"),
        lambda: (folder / "more").touch(),
        lambda: (folder / "more").unlink(),
    ]
    for change in changes:
        before = settled_stamps(folder)
        assert stamps_of(folder) == before
        change()
        assert stamps_of(folder) != before


def test_stamps_of_other_files_vouch_for_nothing(repository_folder: Path) -> None:
    damaged = repository_folder / MODEL / "v1"
    flip_bit(damaged / "items.arrow")
    for stamps in ({}, stamps_of(repository_folder / MODEL / "v2"), None):
        with pytest.raises(BundleInvalid):
            open_bundle(damaged, checked=stamps)
