"""The values of attributes as groups of items, for rules that count them."""

import numpy as np
from numpy.typing import NDArray

from recserve.engine.bundle.catalogue import ITEM_ID, Catalogue
from recserve.errors import InvalidRequest, nearest
from recserve.kernels import Caps, Categories


def caps_of(catalogue: Catalogue, caps: tuple[tuple[str, int], ...], name: str) -> Caps:
    """Numbers the values of all capped attributes through; an item belongs to those that it has.

    ``caps``: pairs of attribute and limit; ``name`` is what errors call them. Raises :class:`InvalidRequest`
    for an attribute that the catalogue does not have, or that has no values to count.
    """
    pairs, limits, n_groups = [], [], 0
    for attribute, limit in caps:
        items, groups, n_values = _groups(catalogue, attribute, name)
        pairs.append((items.astype(np.int64) << 32) | (groups + n_groups))
        limits.append(np.full(n_values, limit, np.int32))
        n_groups += n_values
    return Caps(*_by_item(np.concatenate(pairs), len(catalogue)), np.concatenate(limits))


def both_caps(caps: Caps, others: Caps) -> Caps:
    """Returns caps under which both hold; the groups of ``others`` are numbered behind the first ones."""
    items = np.arange(len(caps.indptr) - 1)
    pairs = [
        (np.repeat(items, np.diff(one.indptr)).astype(np.int64) << 32) | (one.groups + np.int64(first))
        for one, first in ((caps, 0), (others, len(caps.limits)))
    ]
    limits = np.concatenate([caps.limits, others.limits])
    return Caps(*_by_item(np.concatenate(pairs), len(items)), limits)


def categories_of(catalogue: Catalogue, attribute: str, name: str) -> Categories:
    """Returns the values of one attribute; raises as :func:`caps_of`."""
    items, groups, n_values = _groups(catalogue, attribute, name)
    return Categories(*_by_item((items.astype(np.int64) << 32) | groups, len(catalogue)), n_values)


def shares_of(
    categories: Categories, items: NDArray[np.int32], weights: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Returns (n_groups,) float32 of sum 1: the shares of the groups in ``items`` (n,).

    Each gives its weight, (n,), or 1, in equal parts to its groups. Zeros where none of the items is in one.
    """
    sizes = np.diff(categories.indptr)[items]
    owner = np.repeat(np.arange(len(items)), sizes)
    places = np.arange(len(owner)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    groups = categories.groups[categories.indptr[items][owner] + places]
    given = 1.0 / sizes[owner] if weights is None else weights[owner] / sizes[owner]
    counts = np.bincount(groups, given, minlength=categories.n_groups)
    shares: NDArray[np.float32] = (counts / max(counts.sum(), 1e-300)).astype(np.float32)
    return shares


def _by_item(pairs: NDArray[np.int64], n_items: int) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Returns numbers of item · 2³² + group as lists by item; a value that an item has twice counts once."""
    unique = np.unique(pairs)
    indptr = np.searchsorted(unique >> 32, np.arange(n_items + 1)).astype(np.int64)
    return indptr, (unique & 0xFFFFFFFF).astype(np.int32)


def _groups(
    catalogue: Catalogue, attribute: str, name: str
) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """Returns pairs of item and number of its value, and how many values there are."""
    names = [ITEM_ID, *catalogue.attribute_names]
    if attribute not in names:
        cure = nearest(attribute, names)
        raise InvalidRequest(name, found=attribute, expected="an attribute of the catalogue", cure=cure)
    found = catalogue.attribute(attribute)
    if found is None:
        raise InvalidRequest(name, found=attribute, expected="an attribute of texts or numbers")
    if found.indptr is None:
        items = np.flatnonzero(found.known)
        values = found.values[items]
    else:
        items, values = np.repeat(np.arange(len(found.known)), np.diff(found.indptr)), found.values
    unique, groups = np.unique(values, return_inverse=True)
    return items, groups, len(unique)
