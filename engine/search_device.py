"""Where retrieval searches: on the CPU, or on a GPU that holds the catalogue as well."""

import importlib.util
import threading
from copy import copy
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray

from recserve.engine.config import AUTO, CPU, CUDA
from recserve.errors import CheckFailed, ConfigError, RecserveError
from recserve.kernels import ItemFilter, ItemIndex

log = structlog.get_logger("recserve.engine")

Answer = tuple[NDArray[np.float32], NDArray[np.int32]]
CHECKED_ITEMS, CHECKED_K = 4, 10  # at load: the answers to so many queries are compared with the CPU's


class SearchDevice:
    """The device of one retriever; a GPU that fails is given up for good, with a warning.

    ``name``: cuda, or cpu · ``fell_back``: whether a GPU was given up.
    """

    def __init__(self, wanted: str, graphs_on: str) -> None:
        """``wanted``: as EngineConfig.retrieval_device · ``graphs_on``: the device of the bundle's graphs."""
        self._wanted = wanted
        self._lock = threading.Lock()
        is_there = graphs_on != CPU and importlib.util.find_spec("numba_cuda") is not None
        self.name = CUDA if wanted == CUDA or (wanted == AUTO and is_there) else CPU
        self.fell_back = False

    def place(self, index: ItemIndex) -> "ItemIndex | DeviceIndex":
        """Returns what searches ``index`` on this device; raises ConfigError where "cuda" does not work."""
        if self.name == CPU:
            return index
        try:
            return DeviceIndex(index, self)
        except Exception as error:
            if self._wanted == CUDA:
                raise ConfigError(
                    "engine.retrieval_device",
                    found=f"{CUDA}, which does not work ({type(error).__name__}: {error})",
                    expected=f"{AUTO} or {CPU} on this machine",
                ) from error
            self.give_up(error)
            return index

    def give_up(self, error: Exception) -> None:
        """Goes on with the CPU: what a GPU does after an error is not known."""
        with self._lock:
            if not self.fell_back:
                log.warning("GPU does not work, the CPU searches", error=f"{type(error).__name__}: {error}")
            self.name, self.fell_back = CPU, True


class DeviceIndex:
    """Searches and changes as an ItemIndex does, with the same answers, on a GPU until that fails.

    What the GPU's kernels do not take, lists that are too long, the CPU answers.
    """

    def __init__(self, index: ItemIndex, device: SearchDevice) -> None:
        """Uploads ``index``, compiles and compares answers; raises whatever the GPU's libraries raise."""
        from recserve.kernels.cuda import MAX_K, CudaItemIndex

        self._cpu, self._device, self._max_k = index, device, MAX_K
        self._cuda = CudaItemIndex.of(index)
        self._cuda.warmup()
        some = index.snapshot.base.vectors[:CHECKED_ITEMS]
        answers = (self._cuda.search(some, CHECKED_K), index.search(some, CHECKED_K))
        if not all(np.array_equal(found, expected) for found, expected in zip(*answers, strict=True)):
            raise CheckFailed("search on the GPU", found="another answer", expected="that of the CPU")

    def copy(self) -> "DeviceIndex":
        """As ItemIndex.copy."""
        new = copy(self)
        new._cpu = self._cpu.copy()
        return new

    def prepare_filter(self, mask: NDArray[np.bool_]) -> ItemFilter:
        """As ItemIndex.prepare_filter."""
        return self._cpu.prepare_filter(mask)

    def upsert(self, item_indices: NDArray[np.int32], vectors: NDArray[np.float32]) -> None:
        """As ItemIndex.upsert."""
        self._cpu.upsert(item_indices, vectors)
        self._follow()

    def remove(self, item_indices: NDArray[np.int32]) -> None:
        """As ItemIndex.remove."""
        self._cpu.remove(item_indices)
        self._follow()

    def _follow(self) -> None:
        if self._device.name == CUDA:
            try:
                self._cuda = self._cuda.following(self._cpu)
            except Exception as error:  # noqa: BLE001 - no memory for it, say: the CPU has it
                self._device.give_up(error)

    def search(self, queries: NDArray[np.float32], k: int, **rules: Any) -> Answer:
        """As ItemIndex.search, with ``exclude``, ``allow`` and ``bias``."""
        if k <= self._max_k and self._device.name == CUDA:
            try:
                return self._cuda.search(queries, k, **rules)
            except RecserveError:
                raise  # what is asked for is wrong: the CPU would refuse it as well
            except Exception as error:  # noqa: BLE001 - given up visibly
                self._device.give_up(error)
        return self._cpu.search(queries, k, **rules)
