"""One search of up to MAX_BATCH queries on the device, launch by launch."""

from typing import Any

import numpy as np
import numpy.typing as npt

from recserve.kernels import packing
from recserve.kernels.checks import Exclude
from recserve.kernels.cuda import layout, masks, scan, select
from recserve.kernels.cuda.launch import QUERIES_PER_THREAD, Buffers, Launch
from recserve.kernels.cuda.layout import Catalogue, Coarse
from recserve.kernels.rows import TILE

Scores = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int32]

QUERY_LIMIT = 127  # the largest |code| of a query, see isa.Isa
BLOCKS_PER_PROCESSOR = 8
# Groups that a coarse first pass keeps beyond twice the k that an exact one would: bounds are a little higher
# than scores, and the k-th score must be above the bound of every group that is left out.
SPARE_GROUPS = 16


class Search:
    """The device's side of the searches of one catalogue; one search at a time.

    counters: rows scored after the first pass, queries searched again.
    """

    def __init__(self, catalogue: Catalogue, launch: Launch, stream: Any) -> None:
        self._catalogue = catalogue
        self._launch = launch
        self._stream = stream
        self._buffers = Buffers()
        self.counters = [0, 0]

    def run(
        self,
        queries: Scores,
        norms: Scores,
        k: int,
        words: Any,
        exclude: Exclude | None,
        bias: Scores | None,
    ) -> tuple[Scores, Indices]:
        """Returns (scores, indices), both (batch, k).

        queries: (batch, d) float32, 1 ≤ batch ≤ MAX_BATCH · norms: (batch,) float32, at least theirs · 1 ≤ k
        ≤ n_items · words: (1 or batch, n_tiles) uint32 on the host, or None for all items.
        """
        catalogue, coarse = self._catalogue, self._catalogue.coarse
        batch = len(queries)
        group_tiles = self._launch.group_tiles(catalogue.n_tiles, batch)
        rules = (*self._upload_rules(batch, words, exclude, bias),)
        device_queries = self._upload_queries(queries)
        if coarse is None:
            return self._search_exactly(batch, k, group_tiles, rules, device_queries)
        n_groups = self._count_groups(group_tiles)
        n_kept = min(n_groups, 2 * k + SPARE_GROUPS)
        keys = self._scan_coarsely(coarse, queries, norms, group_tiles, rules, device_queries)
        kept, bars = self._select("groups", batch, keys, n_groups, n_kept)
        host_bars = bars.copy_to_host(stream=self._stream)
        scores, indices = self._answer(batch, k, group_tiles, rules, device_queries, kept, n_kept)
        if n_kept == n_groups:
            return scores, indices
        # No item that was left out scores above the bar; one as high as it might come first by its index.
        is_proven = (host_bars == 0) | (scores[:, k - 1] > scores_of(host_bars))
        if is_proven.all():
            return scores, indices
        self.counters[1] += int(np.count_nonzero(~is_proven))
        return self._search_exactly(batch, k, group_tiles, rules, device_queries)

    def _search_exactly(
        self, batch: int, k: int, group_tiles: int, rules: Any, queries: Any
    ) -> tuple[Scores, Indices]:
        catalogue = self._catalogue
        keys = self._keys("scanned", queries, self._count_groups(group_tiles))
        scan.scan_float32[self._scan_grid(queries, group_tiles)](
            catalogue.tiles, catalogue.item_of_row, *rules, queries, group_tiles, keys
        )
        n_groups = keys.shape[1]
        n_kept = min(n_groups, k)
        kept, _ = self._select("groups", batch, keys, n_groups, n_kept)
        return self._answer(batch, k, group_tiles, rules, queries, kept, n_kept)

    def _scan_coarsely(
        self,
        coarse: Coarse,
        queries: Scores,
        norms: Scores,
        group_tiles: int,
        rules: Any,
        device_queries: Any,
    ) -> Any:
        item_of_row = self._catalogue.item_of_row
        keys = self._keys("scanned", device_queries, self._count_groups(group_tiles))
        grid = self._scan_grid(device_queries, group_tiles)
        n_rows = device_queries.shape[0]
        if coarse.codes.dtype == np.float16:
            device_norms = self._upload("norms", pad_rows(norms, n_rows))
            scan.scan_float16[grid](
                coarse.codes,
                coarse.bounds,
                item_of_row,
                *rules,
                device_queries,
                device_norms,
                group_tiles,
                keys,
            )
            return keys
        codes, query_bounds, offsets = quantise(queries, norms, n_rows)
        scan.scan_int8[grid](
            coarse.codes,
            coarse.bounds,
            item_of_row,
            *rules,
            self._upload("codes", codes),
            self._upload("query_bounds", query_bounds),
            self._upload("offsets", offsets),
            group_tiles,
            keys,
        )
        return keys

    def _answer(
        self, batch: int, k: int, group_tiles: int, rules: Any, queries: Any, kept: Any, n_kept: int
    ) -> tuple[Scores, Indices]:
        """Scores the items of the kept groups and writes the best k."""
        catalogue, launch = self._catalogue, self._launch
        n_keys = n_kept * group_tiles
        keys = self._keys("scored", queries, n_keys)
        n_blocks = -(-n_keys // launch.select_threads)
        scan.score_groups[(n_blocks, batch), launch.select_threads, self._stream](
            catalogue.tiles,
            catalogue.item_of_row,
            catalogue.row_of_item,
            *rules,
            queries,
            group_tiles,
            kept,
            n_kept,
            keys,
        )
        self.counters[0] += batch * n_keys
        best, _ = self._select("items", batch, keys, n_keys, k)
        scores = self._buffers.array("scores", (batch, k), np.float32)
        indices = self._buffers.array("indices", (batch, k), np.int32)
        select.write_answer[batch, launch.select_threads, self._stream](best, k, scores, indices)
        host_scores = scores.copy_to_host(stream=self._stream)
        host_indices = indices.copy_to_host(stream=self._stream)
        self._stream.synchronize()
        return host_scores, host_indices

    def _select(self, name: str, batch: int, keys: Any, n_keys: int, k: int) -> tuple[Any, Any]:
        """Returns the k largest keys of each query and their bars, see select.select_largest."""
        bars = self._buffers.array(f"bars of {name}", (batch,), np.uint64)
        # Shorter segments than this would hardly leave fewer keys than they get.
        segment = max(self._launch.segment_keys, 4 * k)
        level = 0
        while True:
            n_segments = -(-n_keys // segment)
            kept = self._buffers.array(f"{name} {level % 2}", (batch, n_segments * k), np.uint64)
            select.select_largest[(n_segments, batch), self._launch.select_threads, self._stream](
                keys, n_keys, segment, k, kept, bars
            )
            if n_segments == 1:
                return kept, bars
            keys, n_keys, level = kept, n_segments * k, level + 1

    def _upload_queries(self, queries: Scores) -> Any:
        """The queries with zeros up to whole fours and to whole rounds of lanes."""
        batch, dim = queries.shape
        host = np.zeros((pad(batch), layout.padded(dim)), np.float32)
        host[:batch, :dim] = queries
        return self._upload("queries", host)

    def _upload_rules(
        self, batch: int, words: Any, exclude: Exclude | None, bias: Scores | None
    ) -> tuple[Any, int, Any]:
        """What may be answered, and whether the bias counts, and the bias."""
        device_words = self._catalogue.live
        if words is not None:
            device_words = self._upload("allowed", words)
        if exclude is not None or (words is not None and len(words) > 1):
            device_words = self._words_per_query(batch, device_words, exclude)
        if bias is None:
            return device_words, 0, self._buffers.array("no bias", (1,), np.float32)
        return device_words, 1, self._upload("bias", bias)

    def _words_per_query(self, batch: int, source: Any, exclude: Exclude | None) -> Any:
        n_threads = self._launch.select_threads
        words = self._buffers.array("words", (pad(batch), self._catalogue.n_tiles), np.uint32)
        grid = (self._blocks(self._catalogue.n_tiles), pad(batch))
        masks.spread_words[grid, n_threads, self._stream](source, batch, words)
        if exclude is not None and len(exclude[1]):
            indptr, item_indices = exclude
            query_of_entry = np.repeat(np.arange(batch, dtype=np.int32), np.diff(indptr))
            n = len(item_indices)
            masks.clear_items[self._blocks(n), n_threads, self._stream](
                self._upload("excluding queries", query_of_entry),
                self._upload("excluded items", item_indices),
                n,
                self._catalogue.row_of_item,
                words,
            )
        return words

    def _upload(self, name: str, host: Any) -> Any:
        return self._buffers.upload(name, host, self._stream)

    def _keys(self, name: str, queries: Any, n_keys: int) -> Any:
        return self._buffers.array(name, (queries.shape[0], n_keys), np.uint64)

    def _count_groups(self, group_tiles: int) -> int:
        """The number of groups, those without rows included."""
        return -(-self._catalogue.n_tiles // group_tiles) * TILE

    def _blocks(self, n: int) -> int:
        """Blocks of select_threads for ``n`` independent steps."""
        n_blocks = -(-n // self._launch.select_threads)
        return max(1, min(n_blocks, BLOCKS_PER_PROCESSOR * self._launch.n_processors))

    def _scan_grid(self, queries: Any, group_tiles: int) -> tuple[Any, int, Any]:
        """The fours of queries first: blocks that read the same tiles run at about the same time."""
        launch = self._launch
        n_fours = queries.shape[0] // QUERIES_PER_THREAD
        n_warps = -(-self._catalogue.n_tiles // group_tiles)
        n_blocks = -(-n_warps // (launch.scan_threads // TILE))
        at_once = max(1, launch.n_processors * BLOCKS_PER_PROCESSOR // n_fours)
        return (n_fours, min(n_blocks, at_once)), launch.scan_threads, self._stream


def pad(batch: int) -> int:
    """Rows of queries on the device: whole fours."""
    return -(-batch // QUERIES_PER_THREAD) * QUERIES_PER_THREAD


def pad_rows(array: Any, n_rows: int) -> Any:
    """The array with rows of zeros at its end."""
    padded = np.zeros((n_rows, *array.shape[1:]), array.dtype)
    padded[: len(array)] = array
    return padded


def quantise(queries: Scores, norms: Scores, n_rows: int) -> tuple[Any, Any, Any]:
    """The queries' codes, bounds and offsets as scan_int8 reads them, with rows of zeros at their end."""
    n_words = packing.padded_dim(queries.shape[1]) // packing.STEP_DIMS
    codes = np.zeros((n_rows, n_words), np.int32)
    factors = np.zeros((n_rows, 4), np.float32)
    sums = np.zeros(n_rows, np.int32)
    part = slice(len(queries))
    packing.quantise_queries(queries, norms, QUERY_LIMIT, codes[part], factors[part], sums[part])
    bounds = np.ascontiguousarray(factors[:, :3].T)
    bounds[0, part] = 1 / bounds[0, part]
    return codes, bounds, 128 * sums


def scores_of(keys: npt.NDArray[np.uint64]) -> Scores:
    """The scores in keys: what arithmetic.score_of does on the device."""
    bits = (keys >> np.uint64(32)).astype(np.uint32)
    is_positive = bits >> 31 == 1
    return np.where(is_positive, bits ^ np.uint32(0x80000000), ~bits).astype(np.uint32).view(np.float32)
