"""Whether something may still be used: not once it is closed, nor in a process forked from its own."""

import os
from weakref import WeakSet

from recserve.errors import Unavailable


class Life:
    """The life of something with threads and locks: a fork would copy the locks, and none of the threads."""

    def __init__(self, name: str) -> None:
        """``name``: what errors call it."""
        self._name = name
        self._end = ""
        _lives.add(self)

    def end(self, found: str = "closed") -> None:
        """Lets :meth:`check` refuse from now on."""
        self._end = found

    def check(self) -> None:
        """Raises :class:`Unavailable` after the end."""
        if self._end:
            raise Unavailable(self._name, found=self._end, expected="open", cure="Load it again.")


_lives: WeakSet[Life] = WeakSet()


def _in_child() -> None:
    for life in list(_lives):
        life.end("of the process that this one was forked from")


os.register_at_fork(after_in_child=_in_child)
