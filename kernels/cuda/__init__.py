"""Exact top-K on an NVIDIA GPU, through numba-cuda (``pip install 'recserve[cuda]'``).

Nothing else of the package imports this folder: without it numba-cuda is neither needed nor loaded. With
``NUMBA_ENABLE_CUDASIM=1`` the same kernels run in Numba's simulator, without a GPU and very slowly.
"""

import importlib.util

from recserve.errors import ConfigError

# Without numba-cuda, numba.cuda is another, older target.
if importlib.util.find_spec("numba_cuda") is None:
    raise ConfigError(
        "numba-cuda", found="not installed", expected="installed", cure="Run pip install 'recserve[cuda]'."
    )

from recserve.kernels.cuda.index import CudaItemIndex
from recserve.kernels.cuda.launch import Launch

__all__ = ["CudaItemIndex", "Launch"]
