"""What processes that this one starts do first: they neither outlive it nor take its time."""

import ctypes
import os
import signal
import sys
from contextlib import suppress

PR_SET_PDEATHSIG = 1
# Of nice(2): the scheduler gives it 36 shares where others have 1024.
LOW_PRIORITY = 15


def follow_parent(number: signal.Signals) -> None:
    """Leaves the terminal's signals to the parent; ``number`` comes when the parent has died (Linux)."""
    os.setpgrp()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)


def run_when_idle(process_id: int) -> None:
    """Gives a process only the time that nobody else wants, for good: none where no core is ever idle.

    Who wakes up finds its core free, and need not wait as beside one of low priority (Linux: SCHED_IDLE).
    Elsewhere, and where a sandbox forbids that or does not know it, it has a low priority.
    """
    if sys.platform == "linux":
        with suppress(OSError):
            os.sched_setscheduler(process_id, os.SCHED_IDLE, os.sched_param(0))
            return
    run_with_low_priority(process_id)


def run_with_low_priority(process_id: int) -> None:
    """Gives a process a thirtieth of the time where this one wants time as well."""
    os.setpriority(os.PRIO_PROCESS, process_id, os.getpriority(os.PRIO_PROCESS, 0) + LOW_PRIORITY)
