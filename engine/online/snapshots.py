"""Snapshots on disk: one file, whole or not there."""

import io
import os
import threading
import zipfile
from pathlib import Path

import numpy as np
import structlog

from recserve.engine.online.learner import Snapshot
from recserve.errors import ConfigError
from recserve.files import write_whole

log = structlog.get_logger("recserve.online")

DRIFT, POSITION = "drift", "position"


class SnapshotFile:
    """The newest snapshot of one model. It holds what items are worth, and nothing of single users."""

    def __init__(self, path: Path) -> None:
        """Makes the folder; raises :class:`ConfigError` where that is not possible."""
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                "online.folder", found=f"{path.parent} ({error.strerror})", expected="one that can be written"
            ) from error

    def write(self, snapshot: Snapshot) -> None:
        """Replaces the file; a full or failing disk is logged, and the snapshot before stays."""
        buffer = io.BytesIO()
        position = np.array(
            [snapshot.applied_seq, snapshot.n_examples, snapshot.n_rollbacks, snapshot.is_good]
        )
        # The names of the model's own arrays get a prefix: they may be any.
        arrays = {f"model.{name}": array for name, array in snapshot.arrays.items()}
        np.savez(buffer, **{POSITION: position, DRIFT: snapshot.drift}, **arrays)  # type: ignore[arg-type]
        # Servers that share a log may share a folder too, and versions with the same items share the file;
        # what each of them writes is whole.
        partial = self.path.with_suffix(f".{os.getpid()}.{threading.get_native_id()}.partial")
        try:
            write_whole(self.path, buffer.getbuffer(), temporary=partial)
        except OSError as error:
            log.error("online model not saved", file=str(self.path), error=str(error))

    def read(self) -> Snapshot | None:
        """Returns the snapshot, None where there is none.

        One that is damaged is logged and not used: the log makes the model anew.
        """
        try:
            with np.load(io.BytesIO(self.path.read_bytes()), allow_pickle=False) as found:
                applied_seq, n_examples, n_rollbacks, is_good = found[POSITION].tolist()
                arrays = {name.removeprefix("model."): found[name] for name in found if "." in name}
                return Snapshot(applied_seq, n_examples, n_rollbacks, bool(is_good), found[DRIFT], arrays)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            log.error("online model not readable: it is learned again", file=str(self.path), error=str(error))
            return None
