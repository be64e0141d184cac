"""What processes that this one starts do first: they neither outlive it nor take its time."""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
# Of nice(2): the scheduler gives it 36 shares where others have 1024. Less, and a server that is never idle
# could not change its version.
LOW_PRIORITY = 15


def follow_parent(number: signal.Signals) -> None:
    """Leaves the terminal's signals to the parent; ``number`` comes when the parent has died (Linux)."""
    os.setpgrp()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)


def take_low_priority() -> None:
    """Lets whoever else has work go first."""
    os.nice(LOW_PRIORITY)
