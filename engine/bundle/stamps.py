"""What files were like when they were checked, so that who opens them next need not read them again."""

import os
import time
from pathlib import Path
from typing import NamedTuple

from recserve.engine.bundle.plain_files import files_in

# A file that changes again within one tick of the kernel's clock keeps its time; ticks are 10 ms at most.
SETTLED_SECONDS = 0.1


class Stamp(NamedTuple):
    """One file; the system sets ``changed_ns`` at every change of content or names, and nobody else can."""

    device: int
    inode: int
    size: int
    n_names: int
    changed_ns: int


# By path within the folder.
Stamps = dict[str, Stamp]


def stamps_of(folder: Path) -> Stamps:
    """Returns the stamp of every file in ``folder``, of links their own."""
    stamps = {}
    for name in files_in(folder):
        status = os.lstat(folder / name)
        stamps[name] = Stamp(
            status.st_dev, status.st_ino, status.st_size, status.st_nlink, status.st_ctime_ns
        )
    return stamps


def settled_stamps(folder: Path) -> Stamps:
    """Returns the stamps once any later change of a file would show in them; take them before a check."""
    stamps = stamps_of(folder)
    newest = max((stamp.changed_ns for stamp in stamps.values()), default=0)
    if 0 <= time.time_ns() - newest < SETTLED_SECONDS * 1e9:
        time.sleep(SETTLED_SECONDS)
    return stamps
