"""Exact top-K on an NVIDIA GPU, through numba-cuda (``pip install 'recserve[cuda]'``).

Only engine/search_device.py imports it, where a GPU is to search: else numba-cuda is neither needed nor
loaded. With ``NUMBA_ENABLE_CUDASIM=1`` the same kernels run in Numba's simulator, without a GPU and very
slowly.
"""

import importlib.util

from recserve.errors import ConfigError

# Without numba-cuda, numba.cuda is another, older target.
if importlib.util.find_spec("numba_cuda") is None:
    raise ConfigError(
        "numba-cuda", found="not installed", expected="installed", cure="Run pip install 'recserve[cuda]'."
    )

from recserve.kernels.cuda.index import MAX_K, CudaItemIndex
from recserve.kernels.cuda.launch import Launch

__all__ = ["MAX_K", "CudaItemIndex", "Launch"]
