"""Rules compiled once per bundle: from text to the bitset that a search reads."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recserve.engine.bundle.catalogue import Catalogue
from recserve.engine.filters.evaluate import evaluate
from recserve.engine.filters.syntax import parse
from recserve.kernels import ItemFilter

# Of the compiled rules that are kept; at least MIN_KEPT, however large the catalogue.
MAX_KEPT_BYTES = 64 << 20
MAX_KEPT, MIN_KEPT = 1024, 8


@dataclass(frozen=True, slots=True)
class CompiledFilter:
    """A rule as a search takes it, and how many items it leaves."""

    allow: ItemFilter
    n_items: int


class FilterCompiler:
    """Compiles rules against one catalogue and keeps those last used; safe to call from several threads.

    ``prepare``: ItemIndex.prepare_filter of the index that is searched.
    """

    def __init__(self, catalogue: Catalogue, prepare: Callable[[NDArray[np.bool_]], ItemFilter]) -> None:
        self._catalogue = catalogue
        self._prepare = prepare
        self._limit = min(MAX_KEPT, max(MIN_KEPT, MAX_KEPT_BYTES // max(1, len(catalogue))))
        # Guards _kept.
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, CompiledFilter] = OrderedDict()

    def compile(self, text: str, name: str = "filter") -> CompiledFilter:
        """Returns the rule ``text``; ``name`` is what errors call it.

        Raises :class:`InvalidRequest`, naming the character, for a rule that does not parse, names an unknown
        attribute or compares other types.
        """
        with self._lock:
            kept = self._kept.get(text) if isinstance(text, str) else None
            if kept is not None:
                self._kept.move_to_end(text)
                return kept
        mask = evaluate(parse(text, name), self._catalogue, name)
        compiled = CompiledFilter(self._prepare(mask), int(mask.sum()))
        with self._lock:
            self._kept[text] = compiled
            if len(self._kept) > self._limit:
                self._kept.popitem(last=False)
        return compiled
