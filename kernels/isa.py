"""The instruction sets that have an int8 first pass, and the choice between them, made once.

A *blocking* says how many queries one call of the micro-kernel scores against a tile of 32 items. Each is a
class of its own, because Numba specialises kernels by type: one scan is compiled per blocking, from one
source, and is found again in the cache by the name of the class.
"""

from dataclasses import dataclass
from typing import NamedTuple

from llvmlite import binding
from numba import config

from recserve.errors import InvalidRequest
from recserve.kernels.simd import X86

PORTABLE = "portable"


class Avx512VnniSingle(NamedTuple):
    n_queries: int = 1


class Avx512VnniBlock(NamedTuple):
    n_queries: int = 8


class AvxVnniSingle(NamedTuple):
    n_queries: int = 1


class AvxVnniBlock(NamedTuple):
    n_queries: int = 2


class Avx2Single(NamedTuple):
    n_queries: int = 1


class Avx2Block(NamedTuple):
    n_queries: int = 2


Blocking = Avx512VnniSingle | Avx512VnniBlock | AvxVnniSingle | AvxVnniBlock | Avx2Single | Avx2Block


@dataclass(frozen=True, slots=True)
class Isa:
    """What the first pass needs to know of an instruction set.

    ``query_limit`` is the largest |code| of a query: AVX2 adds two products of a u8 and a query code in 16
    bits that saturate, and 2 · 255 · 63 < 2¹⁵; the VNNI instructions add in 32 bits.
    """

    name: str
    features: tuple[str, ...]
    lanes: int
    query_limit: int
    single: Blocking
    block: Blocking


ISAS = {
    isa.name: isa
    for isa in (
        Isa("avx512-vnni", ("avx512f", "avx512vnni"), 16, 127, Avx512VnniSingle(), Avx512VnniBlock()),
        Isa("avx-vnni", ("avx2", "avxvnni"), 8, 127, AvxVnniSingle(), AvxVnniBlock()),
        Isa("avx2", ("avx2",), 8, 63, Avx2Single(), Avx2Block()),
    )
}
ISA_OF_BLOCKING: dict[type, Isa] = {
    type(blocking): isa for isa in ISAS.values() for blocking in (isa.single, isa.block)
}


def available() -> list[str]:
    """The names that this process can run, best first; the last is always "portable"."""
    if config.DISABLE_JIT or not X86:
        return [PORTABLE]
    names = []
    for isa in ISAS.values():
        if all(_has(feature) for feature in isa.features):
            names.append(isa.name)
    return [*names, PORTABLE]


def choose(name: str | None) -> Isa | None:
    """Returns the instruction set called ``name``, by default the best; None is the portable path."""
    names = available()
    if name is not None and name not in names:
        raise InvalidRequest("isa", found=name, expected=f"one of {', '.join(names)} on this machine")
    return ISAS.get(name or names[0])


def _has(feature: str) -> bool:
    # Numba compiles for these features, and not for the host's, when it is told so.
    if config.CPU_FEATURES is not None:
        return f"+{feature}" in config.CPU_FEATURES.split(",")
    if config.CPU_NAME not in (None, "host"):
        return False
    return bool(binding.get_host_cpu_features().get(feature))
