"""Exact top-K scoring, compiled by Numba.

The kernels know arrays: item vectors, query embeddings, item indices. They are serial and release the GIL; no
thread is started but for ``search(..., threads=n)``. Nothing compiles at import; :func:`warmup` compiles or
loads everything before the first request.
"""

from recserve.kernels.als import als_step
from recserve.kernels.bpr import bpr_steps
from recserve.kernels.calibrated import Categories, calibrated
from recserve.kernels.caps import Caps
from recserve.kernels.cooccurrence import co_occurrences
from recserve.kernels.diversity import dpp, mmr
from recserve.kernels.encoding import encode_slate_items
from recserve.kernels.filters import ItemFilter
from recserve.kernels.foldin import count_repeats, fold_in, fold_in_shares, gram_matrix
from recserve.kernels.index import ItemIndex, exact_top_k
from recserve.kernels.nearest import nearest_of
from recserve.kernels.online import ftrl_steps, linear_steps, linear_widths
from recserve.kernels.padding import pad_lists, split_lengths
from recserve.kernels.svd import svd_steps
from recserve.kernels.warmup import warmup

__all__ = [
    "Caps",
    "Categories",
    "ItemFilter",
    "ItemIndex",
    "als_step",
    "bpr_steps",
    "calibrated",
    "co_occurrences",
    "count_repeats",
    "dpp",
    "encode_slate_items",
    "exact_top_k",
    "fold_in",
    "fold_in_shares",
    "ftrl_steps",
    "gram_matrix",
    "linear_steps",
    "linear_widths",
    "mmr",
    "nearest_of",
    "pad_lists",
    "split_lengths",
    "svd_steps",
    "warmup",
]
