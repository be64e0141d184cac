"""Numba's CUDA simulator, made strict: what a GPU would do wrong now and then, it refuses every time.

- Threads of a block run one at a time, in another random order between any two barriers.
- A barrier must be reached by every thread of the block, at the same line.
- Two threads that touch the same element of shared or global memory, one of them to write, must be of one
  block with a barrier in between, or both use atomics. Anything else is a race.
- Shared and local memory begins every block with garbage.

It stands on the simulator's own threads and arrays; import it before anything is simulated.
"""

import sys
import threading
from typing import Any

import numpy as np
from numba.cuda.simulator import kernel, kernelapi
from numba.cuda.simulator.cudadrv import devicearray

GARBAGE = 0xA5
rng = np.random.default_rng(0)


class Race(AssertionError):
    """Two threads used one element with nothing that orders them."""


class Accesses:
    """Who touched which element during one launch: (array, index) → the last write and the reads since."""

    def __init__(self) -> None:
        self.is_on = False
        self._seen: dict[Any, dict[str, dict[Any, int]]] = {}
        self._kept: list[Any] = []  # arrays whose id is a key must live as long as the key

    def clear(self) -> None:
        self._seen.clear()
        self._kept.clear()

    def record(self, array: Any, index: Any, kind: str) -> None:
        """``kind``: "read", "write" or "atomic"."""
        thread = threading.current_thread()
        if not self.is_on or not isinstance(thread, StrictThread):
            return
        if thread.is_atomic:
            kind = "atomic"
        position = index if isinstance(index, tuple) else (index,)
        key = (array.__array_interface__["data"][0], array.strides, tuple(int(i) for i in position))
        if key not in self._seen:
            self._kept.append(array)
        kinds = self._seen.setdefault(key, {"read": {}, "write": {}, "atomic": {}})
        me = (thread.block, thread.thread_id)
        for other_kind, users in kinds.items():
            if other_kind == kind != "write":
                continue
            for (block, number), phase in users.items():
                ordered = block == thread.block and phase < thread.phase
                if (block, number) != me and not ordered:
                    raise Race(f"{kind} of {array.dtype} {key[2]} by {me}, {other_kind} by {(block, number)}")
        kinds[kind][me] = thread.phase


accesses = Accesses()


class StrictThread(kernel.BlockThread):  # type: ignore[misc]
    """A thread of a block, which runs only in its turn."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.turn = threading.Semaphore(0)
        self.block = tuple(self.blockIdx)
        self.phase = 0
        self.line: int | None = None
        self.is_atomic = False
        self.shared = self._manager.shared

    def run(self) -> None:
        self.turn.acquire()
        super().run()
        self.line = None
        self._manager.yielded.release()

    def syncthreads(self) -> None:
        self.line = sys._getframe(2).f_lineno
        self._manager.yielded.release()
        self.turn.acquire()
        if self.abort:
            raise RuntimeError("another thread of the block failed")
        self.phase += 1


class StrictBlock(kernel.BlockManager):  # type: ignore[misc]
    """One block: runs its threads from barrier to barrier."""

    def run(self, grid_point: Any, *arguments: Any) -> None:
        self.yielded = threading.Semaphore(0)
        self.shared: dict[int, Any] = {}
        if not any(grid_point):
            accesses.clear()  # a new launch

        def target() -> None:
            self._f(*arguments)

        points = list(np.ndindex(*self._block_dim))
        threads = [StrictThread(target, self, grid_point, point, self._debug) for point in points]
        for thread in threads:
            thread.start()
        waiting = threads
        while waiting:
            for i in rng.permutation(len(waiting)):
                waiting[i].turn.release()
                self.yielded.acquire()
                if waiting[i].exception:
                    self._stop(threads)
                    raise waiting[i].exception[0].with_traceback(waiting[i].exception[1])
            lines = {thread.line for thread in threads}
            if len(lines) > 1:
                self._stop(threads)
                raise AssertionError(f"a barrier is not reached by all threads: lines {lines}")
            waiting = [thread for thread in waiting if thread.line is not None]
        for thread in threads:
            thread.join()

    def _stop(self, threads: list[StrictThread]) -> None:
        for thread in threads:
            thread.abort = True
            thread.turn.release()


class TrackedArray:
    """A shared array whose every use is recorded."""

    def __init__(self, array: Any) -> None:
        self._array = array

    def __getitem__(self, index: Any) -> Any:
        accesses.record(self._array, index, "read")
        return self._array[index]

    def __setitem__(self, index: Any, value: Any) -> None:
        accesses.record(self._array, index, "write")
        self._array[index] = value


def garbage(shape: Any, dtype: Any) -> Any:
    array = np.empty(shape, dtype)
    array.view(np.uint8)[...] = GARBAGE
    return array


def shared_array(self: Any, shape: Any, dtype: Any, alignment: Any = None) -> Any:
    """One array per source line and block, as in the simulator."""
    shared = threading.current_thread().shared  # type: ignore[attr-defined]
    line = sys._getframe(1).f_lineno
    if line not in shared:
        shared[line] = TrackedArray(garbage(shape, dtype))
    return shared[line]


def local_array(self: Any, shape: Any, dtype: Any, alignment: Any = None) -> Any:
    return garbage(shape, dtype)


def atomically(operation: Any) -> Any:
    def wrapped(*arguments: Any) -> Any:
        thread: Any = threading.current_thread()
        thread.is_atomic = True
        try:
            return operation(*arguments)
        finally:
            thread.is_atomic = False

    return wrapped


def install() -> None:
    """Makes every later launch of this process strict."""
    kernel.BlockManager = StrictBlock
    kernelapi.FakeCUDAShared.array = shared_array
    kernelapi.FakeCUDALocal.array = local_array
    for name in ("add", "and_"):
        operation = getattr(kernelapi.FakeCUDAAtomic, name)
        setattr(kernelapi.FakeCUDAAtomic, name, atomically(operation))
    in_kernel = devicearray.FakeWithinKernelCUDAArray
    read, write = in_kernel.__getitem__, in_kernel.__setitem__

    def get_item(self: Any, index: Any) -> Any:
        accesses.record(self._item._ary, index, "read")
        return read(self, index)

    def set_item(self: Any, index: Any, value: Any) -> None:
        accesses.record(self._item._ary, index, "write")
        write(self, index, value)

    in_kernel.__getitem__, in_kernel.__setitem__ = get_item, set_item
