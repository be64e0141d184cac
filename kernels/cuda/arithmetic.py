"""What the kernels compute with: the arithmetic whose every rounding is part of the contract, and the keys.

A GPU compiler fuses a product and a sum into one instruction with one rounding. The scores of this package
are products and sums rounded one by one, in the order of :data:`recserve.kernels.simd.dot`, so that a GPU
returns what a CPU returns, bit for bit; :data:`multiply` and :data:`add` are never fused. In the simulator
plain Python stands in for what only a GPU has.

**The order** of an answer is that of :mod:`recserve.kernels.topk`. A key here is a uint64 instead of an int64
with the same order, so that 0 can mean "no item" and its digits can be counted.
"""

# mypy: allow-untyped-defs

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import cuda
from numba.cuda.core import config

SIMULATED = bool(config.ENABLE_CUDASIM)
LANES = 16  # as simd.DOT_LANES
NO_KEY = np.uint64(0)  # below the key of every item

_SIGN = np.uint32(0x80000000)
ALL_ONES = np.uint32(0xFFFFFFFF)
_HALF = np.uint64(32)

# A search of one query selects with one block, and there is nothing to gain from more of them.
config.CUDA_LOW_OCCUPANCY_WARNINGS = 0


_OPTIONS: dict[str, Any] = {} if SIMULATED else {"lto": False}  # the simulator does not know it


def cuda_kernel(function: Callable[..., Any]) -> Any:
    """Compiles ``function`` at its first launch on a device.

    Without link-time optimisation: the code whose instructions and registers the tests look at is the code
    that runs.
    """
    return cuda.jit(**_OPTIONS)(function)


def device_function(function: Callable[..., Any]) -> Any:
    """Makes ``function`` callable from kernels."""
    return cuda.jit(device=True)(function)


def _dot4_python(item_codes: int, query_codes: int, total: int) -> Any:
    items, queries = int(item_codes), int(query_codes) & 0xFFFFFFFF
    for shift in (0, 8, 16, 24):
        query_code = queries >> shift & 0xFF
        total += (items >> shift & 0xFF) * (query_code - 256 if query_code > 127 else query_code)
    return np.int32(total)


def _dot4_compiled() -> Any:
    from llvmlite import ir
    from numba.cuda import types
    from numba.cuda.extending import intrinsic

    word = ir.IntType(32)

    @intrinsic
    def dot4(typing_context: Any, item_codes: Any, query_codes: Any, total: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            kind = ir.FunctionType(word, [word, word, word])
            text, constraints = "dp4a.u32.s32 $0, $1, $2, $3;", "=r,r,r,r"
            return builder.call(ir.InlineAsm(kind, text, constraints, side_effect=False), arguments)

        return types.int32(types.uint32, types.int32, types.int32), codegen

    return dot4


# multiply(x, y), add(x, y): one float32 operation, rounded once, never fused with another.
multiply: Any
add: Any
# dot4(item_codes, query_codes, total): the int32 total plus four products, of the unsigned bytes of the
# uint32 item_codes with the signed bytes of the int32 query_codes.
dot4: Any
if SIMULATED:
    multiply, add, dot4 = (lambda x, y: x * y), (lambda x, y: x + y), _dot4_python
else:
    multiply, add, dot4 = cuda.libdevice.fmul_rn, cuda.libdevice.fadd_rn, _dot4_compiled()


@device_function
def make_key(score, item_index):
    """The key of one candidate; ``score`` is not NaN. −0.0 counts as 0.0, so that the two are a tie."""
    bits = add(score, np.float32(0.0)).view(np.uint32)
    bits = np.uint32(bits ^ (ALL_ONES if bits & _SIGN else _SIGN))
    return (np.uint64(bits) << _HALF) | np.uint64(ALL_ONES - np.uint32(item_index))


@device_function
def score_of(key):
    """The score in a key."""
    bits = np.uint32(key >> _HALF)
    return np.uint32(bits ^ (_SIGN if bits & _SIGN else ALL_ONES)).view(np.float32)


@device_function
def item_of(key):
    """The item_index in a key."""
    return np.int32(ALL_ONES - np.uint32(key & np.uint64(ALL_ONES)))


@device_function
def sum_lanes(lanes, first):
    """Adds the upper half of ``lanes[first : first + 16]`` to the lower half until one number is left."""
    for lane in range(8):
        lanes[first + lane] = add(lanes[first + lane], lanes[first + lane + 8])
    for lane in range(4):
        lanes[first + lane] = add(lanes[first + lane], lanes[first + lane + 4])
    for lane in range(2):
        lanes[first + lane] = add(lanes[first + lane], lanes[first + lane + 2])
    return add(lanes[first], lanes[first + 1])
