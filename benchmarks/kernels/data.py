"""Item vectors and queries to search: without any structure, and as trained models leave them.

A catalogue that takes time to learn is kept in the user's cache folder, named by everything that it depends
on: the second run reads it.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

from recserve import console
from recserve.benchmarks.kernels import two_tower
from recserve.benchmarks.kernels.interactions import Interactions, Lists, of_dataset, topic_mixture
from recserve.benchmarks.kernels.options import ML_100K, ML_100K_ITEMS
from recserve.errors import InvalidRequest
from recserve.kernels import fold_in

Vectors = npt.NDArray[np.float32]
Catalogue = tuple[Vectors, Vectors]

N_QUERIES = 4096
FORMAT = 1  # raised when a generator changes: what is cached is then made anew
CONFIDENCE = 20.0
REG = 0.05
ALS_ROUNDS = 3  # further rounds change the distribution of norms and scores little
SMALL_ROUNDS = 10


def make(kind: str, n_items: int, dim: int, seed: int, cache: Path) -> Catalogue:
    """Returns (item vectors (n_items, dim), queries (at most 4096, dim)) of one of options.DATA.

    ``cache`` is the folder for what has been learned.
    """
    if kind == "gaussian":
        rng = np.random.default_rng(seed)
        vectors = rng.standard_normal((n_items, dim), dtype=np.float32)
        return vectors, rng.standard_normal((N_QUERIES, dim), dtype=np.float32)
    if kind == ML_100K and n_items != ML_100K_ITEMS:
        raise InvalidRequest(f"items of {kind}", found=n_items, expected=str(ML_100K_ITEMS))
    folder = cache / "benchmarks"
    name = f"{kind}-v{FORMAT}-items{n_items}-dim{dim}-seed{seed}"
    paths = [folder / f"{name}-{part}.npy" for part in ("vectors", "queries")]
    if not all(path.is_file() for path in paths):
        console.note(f"learning {kind} {n_items} × {dim} (once; kept in {folder})")
        folder.mkdir(parents=True, exist_ok=True)
        for path, array in zip(paths, LEARNED[kind](n_items, dim, seed), strict=True):
            _keep(path, array)
    vectors, queries = (np.load(path) for path in paths)
    return vectors, queries


def _keep(path: Path, array: Vectors) -> None:
    # Renamed when it is whole: a run that is interrupted leaves no half catalogue.
    partial = path.with_name(f".{os.getpid()}-{path.name}")
    np.save(partial, np.ascontiguousarray(array, np.float32))
    partial.rename(path)


def _shop(n_items: int, seed: int) -> Interactions:
    # A shop of a million items needs more visitors than its default, or most items have never been seen.
    n_users = max(4096, n_items // 2)
    return of_dataset(f"synthetic-shop:n_items={n_items},n_users={n_users},seed={seed}")


def _als(n_items: int, dim: int, seed: int) -> Catalogue:
    rng = np.random.default_rng(seed)
    return factorise(topic_mixture(rng, n_items, N_QUERIES), dim, ALS_ROUNDS, rng)


def _als_shop(n_items: int, dim: int, seed: int) -> Catalogue:
    return factorise(_shop(n_items, seed), dim, ALS_ROUNDS, np.random.default_rng(seed))


def _als_ml_100k(n_items: int, dim: int, seed: int) -> Catalogue:
    return factorise(of_dataset("ml-100k"), dim, SMALL_ROUNDS, np.random.default_rng(seed))


def _two_tower(n_items: int, dim: int, seed: int) -> Catalogue:
    return two_tower.train(_shop(n_items, seed), dim, N_QUERIES, seed)


LEARNED: dict[str, Callable[[int, int, int], Catalogue]] = {
    "als": _als,
    "als-shop": _als_shop,
    ML_100K: _als_ml_100k,
    "two-tower": _two_tower,
}


def factorise(interactions: Interactions, dim: int, rounds: int, rng: np.random.Generator) -> Catalogue:
    """Implicit ALS: returns (item vectors, the vectors of the first 4096 users)."""
    by_user, by_item = interactions.by_user(), interactions.by_item()
    vectors = rng.normal(0, 0.1, (interactions.n_items, dim)).astype(np.float32)
    for _ in range(rounds):
        vectors = _solve(_solve(vectors, by_user), by_item)
    indptr, items = by_user
    some = indptr[: N_QUERIES + 1]
    return vectors, _solve(vectors, (some, items[: some[-1]]))


def _solve(vectors: Vectors, lists: Lists) -> Vectors:
    """One half of a round; the rows are independent, so every core gets a share."""
    indptr, columns = lists
    cuts = np.linspace(0, len(indptr) - 1, (os.cpu_count() or 1) + 1).astype(np.int64)

    def share(start: np.int64, stop: np.int64) -> Vectors:
        own = columns[indptr[start] : indptr[stop]]
        weights = np.full(len(own), CONFIDENCE, np.float32)
        return fold_in(vectors, (indptr[start : stop + 1] - indptr[start], own), weights, reg=REG)

    with ThreadPoolExecutor(len(cuts) - 1) as pool:
        return np.concatenate(list(pool.map(share, cuts[:-1], cuts[1:])))
