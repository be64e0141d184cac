"""The edge of this package: what comes in is checked here once, and the offender is named."""

import operator
from typing import Any

import numpy as np
import numpy.typing as npt

from recserve.errors import InvalidRequest

MAX_DIM = 1024
MAX_BIAS = 1e37
FLOAT32, INT32 = np.dtype(np.float32), np.dtype(np.int32)

Exclude = tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]


def kind_of(array: Any) -> str:
    """What an argument is, in a few words."""
    return f"{array.dtype} of shape {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__


def read_only(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A read-only view: Numba compiles apart for writable arrays, and memory-mapped ones are read-only."""
    view = np.asarray(array).view()
    view.setflags(write=False)
    return view


def check_matrix(
    name: str, array: npt.NDArray[np.float32], dim: int | None = None
) -> npt.NDArray[np.float32]:
    """Returns ``array`` as a read-only C-order (n, d) float32 matrix; copies only if it is not C-order."""
    if not isinstance(array, np.ndarray) or array.dtype != np.float32:
        raise InvalidRequest(
            name,
            found=kind_of(array),
            expected="a float32 array",
            cure="Convert it with np.asarray(x, np.float32).",
        )
    if array.ndim != 2 or not 1 <= array.shape[1] <= MAX_DIM or dim not in (None, array.shape[1]):
        expected = f"(n, {dim})" if dim else f"(n, d) with d from 1 to {MAX_DIM}"
        raise InvalidRequest(name, found=f"of shape {array.shape}", expected=f"shape {expected}")
    return read_only(np.ascontiguousarray(array))


def check_queries(queries: npt.NDArray[np.float32], dim: int) -> npt.NDArray[np.float32]:
    """Returns a writable C-order (n, dim) float32 matrix; copies what is not one.

    Writable, for Numba finds the compiled form of a writable array at once, and of another in 30 ns.
    """
    if (
        type(queries) is np.ndarray
        and queries.dtype is FLOAT32
        and queries.flags.carray
        and queries.shape[1:] == (dim,)
    ):
        return queries
    return check_matrix("queries", queries, dim).copy()


def refuse_row(name: str, vectors: npt.NDArray[np.float32], row: int) -> InvalidRequest:
    """The error for a row whose norm is not a number up to 1e18."""
    values = vectors[row]
    bad = np.flatnonzero(~np.isfinite(values))
    found = f"{values[bad[0]]} in column {bad[0]}" if len(bad) else f"of norm {np.linalg.norm(values):.3g}"
    return InvalidRequest(
        f"{name} row {row}",
        found=found,
        expected="finite numbers with a norm of at most 1e18",
        cure="Larger vectors would overflow float32 scores.",
    )


def check_k(k: int, name: str = "k") -> int:
    """Returns a count, of itself the wanted list length, as an int of at least 1."""
    if type(k) is int and k >= 1:
        return k
    try:
        length = operator.index(k)
    except TypeError:
        length = 0
    if length < 1:
        raise InvalidRequest(name, found=k, expected="an integer of at least 1")
    return length


def check_interactions(interactions: Exclude, n_items: int) -> Exclude:
    """Returns (indptr, item_indices) of any number of users, every item_index below ``n_items``."""
    try:
        n_users = len(interactions[0]) - 1
    except (TypeError, IndexError):
        n_users = -1
    if n_users < 0:
        expected = "a pair (indptr, item_indices), indptr of length n_users + 1"
        raise InvalidRequest("interactions", found=type(interactions).__name__, expected=expected)
    indptr, item_indices = check_lists("interactions", interactions, n_users)
    return indptr, check_items("interactions item_indices", item_indices, n_items)


def check_lists(name: str, lists: Exclude, batch: int) -> Exclude:
    """Returns (indptr, item_indices) as read-only int64 and int32 arrays whose parts fit together."""
    try:
        indptr, item_indices = lists
    except (TypeError, ValueError):
        raise InvalidRequest(
            name, found=type(lists).__name__, expected="a pair (indptr, item_indices)"
        ) from None
    for part, array, dtype in (("indptr", indptr, np.int64), ("item_indices", item_indices, np.int32)):
        if not isinstance(array, np.ndarray) or array.dtype != dtype or array.ndim != 1:
            raise InvalidRequest(
                f"{name} {part}", found=kind_of(array), expected=f"a flat {np.dtype(dtype)} array"
            )
    if len(indptr) != batch + 1 or indptr[0] != 0 or indptr[-1] != len(item_indices):
        found = f"of length {len(indptr)} from {indptr[:1]} to {indptr[-1:]}"
        expected = f"of length {batch + 1} from 0 to {len(item_indices)}"
        raise InvalidRequest(f"{name} indptr", found=found, expected=expected)
    if (indptr[1:] < indptr[:-1]).any():
        raise InvalidRequest(f"{name} indptr", found="falling", expected="never falling")
    return read_only(np.ascontiguousarray(indptr)), read_only(np.ascontiguousarray(item_indices))


def check_items(name: str, item_indices: npt.NDArray[np.int32], limit: int) -> npt.NDArray[np.int32]:
    """Returns a flat int32 array of item indices, all below ``limit``."""
    if not isinstance(item_indices, np.ndarray) or item_indices.dtype != np.int32 or item_indices.ndim != 1:
        raise InvalidRequest(name, found=kind_of(item_indices), expected="a flat int32 array")
    # Below 0 is above all that int32 has.
    if len(item_indices) and item_indices.view(np.uint32).max() >= limit:
        bad = np.flatnonzero((item_indices < 0) | (item_indices >= limit))
        expected = f"an item_index from 0 to {limit - 1}"
        raise InvalidRequest(f"{name}[{bad[0]}]", found=int(item_indices[bad[0]]), expected=expected)
    return item_indices


def check_allow(allow: npt.NDArray[np.bool_], batch: int, n_items: int) -> npt.NDArray[np.bool_]:
    """Returns the mask as read-only bool of shape (1, n_items) or (batch, n_items)."""
    if not isinstance(allow, np.ndarray) or allow.dtype != np.bool_:
        raise InvalidRequest("allow", found=kind_of(allow), expected="a bool array")
    if allow.shape not in ((n_items,), (batch, n_items)):
        expected = f"shape ({n_items},) or ({batch}, {n_items})"
        raise InvalidRequest("allow", found=kind_of(allow), expected=expected)
    return read_only(np.ascontiguousarray(allow.reshape(-1, n_items) if n_items else allow.reshape(1, 0)))


def check_bias(bias: npt.NDArray[np.float32], n_items: int) -> npt.NDArray[np.float32]:
    """Returns the bias as a read-only float32 array; each value is within ±1e37."""
    if not isinstance(bias, np.ndarray) or bias.dtype != np.float32 or bias.shape != (n_items,):
        raise InvalidRequest("bias", found=kind_of(bias), expected=f"float32 of shape ({n_items},)")
    bad = np.flatnonzero(~(np.abs(bias) <= MAX_BIAS))
    if len(bad):
        raise InvalidRequest(
            f"bias of item {bad[0]}",
            found=bias[bad[0]],
            expected="a number from -1e37 to 1e37",
            cure="Use `allow` or `exclude` to leave an item out.",
        )
    return read_only(np.ascontiguousarray(bias))
