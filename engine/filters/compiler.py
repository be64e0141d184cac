"""Rules compiled once per bundle: from text to the bitset that a search reads."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recserve.engine.bundle.catalogue import Catalogue
from recserve.engine.filters.evaluate import evaluate
from recserve.engine.filters.syntax import parse
from recserve.engine.kept import Kept
from recserve.errors import InvalidRequest
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
        self.limit = min(MAX_KEPT, max(MIN_KEPT, MAX_KEPT_BYTES // max(1, len(catalogue))))
        self._kept = Kept[CompiledFilter](self.limit)

    def compile(self, text: str, name: str = "filter") -> CompiledFilter:
        """Returns the rule ``text``; ``name`` is what errors call it.

        Raises :class:`InvalidRequest`, naming the character, for a rule that does not parse, names an unknown
        attribute or compares other types.
        """
        if not isinstance(text, str):
            raise InvalidRequest(name, found=type(text).__name__, expected="a string")
        return self._kept.get(text, lambda: self.of_mask(evaluate(parse(text, name), self._catalogue, name)))

    def both(self, first: str, second: str) -> CompiledFilter:
        """Returns what two rules allow together."""
        one, other = self.compile(first), self.compile(second)
        return self._kept.get((first, second), lambda: self.of_mask(one.allow.mask & other.allow.mask))

    def of_mask(self, mask: NDArray[np.bool_]) -> CompiledFilter:
        """Returns a mask, (n_items,) bool, as a search takes it; it is not kept."""
        return CompiledFilter(self._prepare(mask), int(np.count_nonzero(mask)))
