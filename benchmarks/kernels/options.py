"""What is measured: the grids of cases, and the choice between them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from recserve.errors import InvalidRequest, nearest

DATA = ("gaussian", "als", "als-shop", "als-ml-100k", "two-tower")
EXACT_PEERS = ("numpy", "torch", "onnxruntime", "faiss", "implicit", "usearch")
APPROXIMATE_PEERS = ("faiss-ivf", "faiss-pq", "faiss-hnsw", "scann", "hnswlib", "hnswlib-l2")
PEERS = EXACT_PEERS + APPROXIMATE_PEERS
# No structure, and a factorised catalogue: the two ends between which approximate indices live.
APPROXIMATE_DATA = ("gaussian", "als")
ML_100K = "als-ml-100k"
ML_100K_ITEMS = 1682
LARGE_ITEMS = 10_000_000


@dataclass(frozen=True, slots=True)
class Grid:
    """Every combination of batch size and list length on some catalogues.

    data: names out of DATA · n_items, dim: the size of each catalogue; ml-100k has its own number of items ·
    threads: of every method.
    """

    data: tuple[str, ...]
    n_items: int
    dim: int
    batches: tuple[int, ...]
    ks: tuple[int, ...]
    threads: int = 1

    def __post_init__(self) -> None:
        check_names("data", self.data, DATA)
        for name, values, high in (
            ("items", (self.n_items,), 2**31 - 1),
            ("dim", (self.dim,), 1024),
            ("batch", self.batches, 4096),
            ("k", self.ks, min(self.items_of(kind) for kind in self.data)),
            ("threads", (self.threads,), 64),
        ):
            for value in values:
                if not 1 <= value <= high:
                    raise InvalidRequest(f"--{name}", found=value, expected=f"1 to {high}")

    def items_of(self, kind: str) -> int:
        """The number of items of the catalogue of ``kind``."""
        return ML_100K_ITEMS if kind == ML_100K else self.n_items


@dataclass(frozen=True, slots=True)
class Options:
    """One run.

    seconds: for the timing of one case · approximate_up_to: the largest number of items for which the
    approximate peers are built (0: none).
    """

    grids: tuple[Grid, ...]
    seconds: float = 1.0
    seed: int = 7
    peers: tuple[str, ...] = PEERS
    isa: str | None = None
    approximate_up_to: int = 0

    def __post_init__(self) -> None:
        check_names("peers", self.peers, PEERS)
        if not 0 <= self.seconds <= 600:
            raise InvalidRequest("--seconds", found=self.seconds, expected="0 to 600")
        if not 0 <= self.seed < 2**31:
            raise InvalidRequest("--seed", found=self.seed, expected=f"0 to {2**31 - 1}")

    def as_dict(self) -> dict[str, Any]:
        """The options as plain values, for the measuring process and the result."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The inverse of :meth:`as_dict`, also after JSON has made lists of the tuples."""
        grids = tuple(Grid(**_with_tuples(grid)) for grid in values["grids"])
        return cls(**{**_with_tuples(values), "grids": grids})

    def of_threads(self, threads: int) -> "Options":
        """The part of the run that uses ``threads`` threads."""
        return replace(self, grids=tuple(grid for grid in self.grids if grid.threads == threads))


def split_names(text: str) -> tuple[str, ...]:
    """Reads "numpy,faiss"."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def split_numbers(option: str, text: str) -> tuple[int, ...]:
    """Reads "1,8,64"; raises InvalidRequest where a part is no whole number."""
    numbers = []
    for part in split_names(text):
        try:
            numbers.append(int(part))
        except ValueError:
            expected = "whole numbers, separated by commas"
            raise InvalidRequest(f"--{option}", found=part, expected=expected) from None
    return tuple(numbers)


def check_names(option: str, names: Sequence[str], allowed: Sequence[str]) -> None:
    """Raises InvalidRequest for a name that is not one of ``allowed``."""
    for name in names:
        if name not in allowed:
            raise InvalidRequest(
                f"--{option}",
                found=name,
                expected=f"some of {', '.join(allowed)}",
                cure=nearest(name, allowed),
            )


def _with_tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


TABLE = (
    Grid(("gaussian", "als"), 100_000, 64, (1, 8, 64, 256), (10, 100)),
    Grid(("als-shop", "two-tower"), 100_000, 64, (1, 64), (10, 100)),
    Grid((ML_100K,), ML_100K_ITEMS, 64, (1, 64), (10,)),
    Grid(("gaussian", "als"), 1_000_000, 64, (1, 64), (10, 100)),
    Grid(("gaussian", "als"), 100_000, 64, (64, 256), (10,), threads=2),
)
QUICK = (Grid(("gaussian", "als"), 100_000, 64, (1, 64), (10,)),)
FULL = (
    Grid(("gaussian", "als", "als-shop", "two-tower"), 100_000, 64, (1, 8, 64, 256), (10, 100)),
    Grid(("gaussian", "als", "als-shop", "two-tower"), 100_000, 128, (1, 8, 64, 256), (10, 100)),
    Grid((ML_100K,), ML_100K_ITEMS, 64, (1, 8, 64, 256), (10, 100)),
    Grid(("gaussian", "als"), 1_000_000, 64, (1, 8, 64, 256), (10, 100)),
    Grid(("gaussian",), 1_000_000, 128, (1, 8, 64, 256), (10, 100)),
    Grid(("gaussian", "als"), 100_000, 64, (1, 8, 64, 256), (10, 100), threads=2),
    Grid(("gaussian", "als"), 1_000_000, 64, (1, 64), (10,), threads=2),
)
LARGE = (Grid(("gaussian",), LARGE_ITEMS, 64, (1, 64), (10,)),)


def preset(*, quick: bool, full: bool) -> tuple[Grid, ...]:
    """The grids of a run without choices; raises InvalidRequest for two presets at once."""
    if quick and full:
        raise InvalidRequest("--quick", found="given with --full", expected="one of the two")
    return QUICK if quick else FULL if full else TABLE


def choose_grids(
    grids: tuple[Grid, ...],
    large: bool,
    data: str,
    items: str,
    dims: str,
    batches: str,
    ks: str,
    threads: str,
) -> tuple[Grid, ...]:
    """``grids``, or every combination of the lists that a person gave ("1,8,64"), each or none of them.

    What was not given is the quick run's; ``large`` adds ten million items.
    """
    if any((data, items, dims, batches, ks, threads)):
        grids = tuple(
            Grid(
                split_names(data) or QUICK[0].data,
                n_items,
                dim,
                split_numbers("batch", batches) or QUICK[0].batches,
                split_numbers("k", ks) or QUICK[0].ks,
                count,
            )
            for count in split_numbers("threads", threads) or (1,)
            for n_items in split_numbers("items", items) or (QUICK[0].n_items,)
            for dim in split_numbers("dim", dims) or (QUICK[0].dim,)
        )
    return grids + (LARGE if large else ())
