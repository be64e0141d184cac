"""Which sizes are measured, read from the command line's strings and checked once."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from recserve.benchmarks.kernels.options import DATA, LARGE_ITEMS, ML_100K, check_names, split_numbers
from recserve.errors import InvalidRequest

# Each axis with its values; the others stay at their base meanwhile. A bundle has an embedding size already,
# and a bare search has no history.
AXES: Mapping[str, tuple[int, ...]] = {
    "items": (10_000, 30_000, 100_000, 300_000, 1_000_000),
    "history": (1, 3, 10, 30, 100, 300),
    "batch": (1, 4, 16, 64, 256),
    "callers": (1, 2, 4, 8),
    "dim": (16, 32, 64, 128, 256),
    "k": (1, 10, 100, 1000),
}
QUICK: Mapping[str, tuple[int, ...]] = {
    "items": (10_000, 30_000, 100_000),
    "history": (1, 10, 50),
    "batch": (1, 8, 64),
    "callers": (1, 2, 4),
    "dim": (32, 64, 128),
    "k": (1, 10, 100),
}
LIMITS = {"items": 2**27, "history": 1000, "batch": 256, "callers": 64, "dim": 1024, "k": 1000}
SEARCH_AXES = ("items", "batch", "callers", "dim", "k")
BUNDLE_AXES = ("items", "history", "batch", "callers", "k")


@dataclass(frozen=True, slots=True)
class Base:
    """What stays while another size varies. ``items`` and ``dim`` are those of the bare search."""

    items: int = 100_000
    dim: int = 64
    batch: int = 8
    k: int = 10
    callers: int = 1

    def at(self, axis: str, size: int) -> Self:
        """This with another size on ``axis``; a bundle's own axes change nothing here."""
        return replace(self, **{axis: size}) if axis != "history" else self


@dataclass(frozen=True, slots=True)
class ScaleOptions:
    """One run: ``axes`` by name, ``seconds`` for all points of an axis together."""

    axes: Mapping[str, tuple[int, ...]]
    base: Base = Base()
    data: str = "gaussian"
    seconds: float = 5.0
    seed: int = 7

    def __post_init__(self) -> None:
        check_names("data", (self.data,), [kind for kind in DATA if kind != ML_100K])
        for name, values in self.axes.items():
            for value in values:
                if not 1 <= value <= LIMITS[name]:
                    raise InvalidRequest(f"--{name}", found=value, expected=f"1 to {LIMITS[name]}")
        if not 0 <= self.seconds <= 600:
            raise InvalidRequest("--seconds", found=self.seconds, expected="0 to 600")
        if not 0 <= self.seed < 2**31:
            raise InvalidRequest("--seed", found=self.seed, expected=f"0 to {2**31 - 1}")

    def as_dict(self) -> dict[str, Any]:
        """The options as plain values."""
        return asdict(self)


def choose_axes(given: Mapping[str, str], *, quick: bool, large: bool) -> dict[str, tuple[int, ...]]:
    """Returns the axes that a person named ("10000,100000" by axis), each sorted; all of them without any.

    ``large`` adds ten million items.
    """
    axes = {name: split_numbers(name, text) for name, text in given.items() if text}
    chosen = axes or dict(QUICK if quick else AXES)
    if large:
        chosen["items"] = (*chosen.get("items", ()), LARGE_ITEMS)
    return {name: tuple(sorted(set(values))) for name, values in chosen.items()}
