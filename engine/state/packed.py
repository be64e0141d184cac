"""Observed events on their way from the process of a log to the memory of a server: bytes, not objects."""

from array import array
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from recserve.engine.state.keys import USER_KEY_BYTES
from recserve.engine.state.observed import EVENT


class Packed(NamedTuple):
    """``user_keys``: ``USER_KEY_BYTES`` each; ``events``: as many ``EVENT``, with the sender's item codes.

    ``new_ids``: of the codes that were not sent before, in their order.
    """

    new_ids: list[str]
    user_keys: bytes
    events: bytes


class PackedReader:
    """Gives events of one sender the item codes that ``code`` has for their ids."""

    def __init__(self, code: Callable[[str], int]) -> None:
        self._code = code
        # Of the sender's codes, in their order.
        self._codes = array("i")

    def open(self, packed: Packed) -> Iterable[tuple[bytes, bytes]]:
        """Returns user keys and events of ``EVENT`` bytes; without those whose item got no code."""
        self._codes.extend(map(self._code, packed.new_ids))
        events = np.frombuffer(packed.events, EVENT).copy()
        events["code"] = np.frombuffer(self._codes, np.int32)[events["code"]]
        keys = np.frombuffer(packed.user_keys, f"V{USER_KEY_BYTES}")
        known = events["code"] >= 0
        return zip(keys[known].tolist(), events[known].view(f"V{EVENT.itemsize}").tolist(), strict=True)
