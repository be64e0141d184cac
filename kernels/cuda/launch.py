"""How the work of a search is cut into blocks and threads, and the memory that searches use again."""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numba import cuda

from recserve.errors import ConfigError
from recserve.kernels.cuda.arithmetic import SIMULATED
from recserve.kernels.rows import TILE

QUERIES_PER_THREAD = (
    4  # 4 queries × 16 lanes of partial sums are 64 registers, the most that fit without spills
)
MAX_BATCH = 32  # queries per pass over the items; a larger batch takes several
WARPS_PER_PROCESSOR = 16  # as many as find registers


@dataclass(frozen=True, slots=True)
class Launch:
    """How a search is spread over a device; answers do not depend on it."""

    n_processors: int
    """Streaming multiprocessors: grids are sized to fill them."""
    scan_threads: int = 128
    """Threads per block of the scans, a multiple of 32."""
    select_threads: int = 512
    """Threads per block of everything else."""
    max_group_tiles: int = 16
    """A group is what one thread reduces to its best item: at most this many tiles, one item of each."""
    segment_keys: int = 8192
    """Keys that one block selects from."""

    def __post_init__(self) -> None:
        for name in ("n_processors", "scan_threads", "select_threads", "max_group_tiles", "segment_keys"):
            if getattr(self, name) < 1:
                raise ConfigError(f"launch.{name}", found=getattr(self, name), expected="at least 1")
        if self.scan_threads % TILE:
            raise ConfigError(
                "launch.scan_threads", found=self.scan_threads, expected=f"a multiple of {TILE}"
            )

    @classmethod
    def for_device(cls) -> Self:
        """Fits the current device; raises ConfigError if there is none."""
        if SIMULATED:
            return cls(n_processors=1, scan_threads=32, select_threads=16, segment_keys=256)
        if not cuda.is_available():
            raise ConfigError("no CUDA device", found="found", expected="one")
        return cls(n_processors=cuda.get_current_device().MULTIPROCESSOR_COUNT)

    def group_tiles(self, n_tiles: int, batch: int) -> int:
        """Tiles per group: larger groups leave fewer keys to select from, smaller ones fill the device."""
        n_passes = -(-batch // QUERIES_PER_THREAD)
        per_warp = n_tiles * n_passes // (self.n_processors * WARPS_PER_PROCESSOR)
        return max(1, min(per_warp, self.max_group_tiles))


class Buffers:
    """Device arrays by name that later searches use again; one search at a time may hold them."""

    def __init__(self) -> None:
        self._memory: dict[str, Any] = {}
        self._views: dict[str, Any] = {}
        self._sources: dict[str, Any] = {}  # a copy may still be reading them when upload returns

    def array(self, name: str, shape: tuple[int, ...], dtype: Any) -> Any:
        """A C-order device array of any content, of one element or more; valid until the next of its name."""
        view = self._views.get(name)
        if view is not None and view.shape == shape:
            return view
        size = int(np.prod(shape))
        memory = self._memory.get(name)
        if memory is None or memory.shape[0] < size:
            self._memory[name] = memory = cuda.device_array(max(1, size), dtype)
        view = memory[:size].reshape(shape)
        self._views[name] = view
        return view

    def upload(self, name: str, host: Any, stream: Any) -> Any:
        """The buffer of this name with the content of ``host``."""
        self._sources[name] = host = np.ascontiguousarray(host)
        device = self.array(name, host.shape, host.dtype)
        device.copy_to_device(host, stream=stream)
        return device
