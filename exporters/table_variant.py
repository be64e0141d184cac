"""The variant of a model of two tables: a row per user of the bundle, a fold-in for everybody else."""

import dataclasses
import io

import numpy as np
from numpy.typing import NDArray

from recserve.engine.bundle import BundleWriter, FoldIn, VariantEntry, layout
from recserve.engine.bundle.manifest import TABLE, InputContract
from recserve.exporters.parity import N_GOLDEN, Parity, check_parity, evenly_spaced
from recserve.exporters.variant import GOLDEN, Variant
from recserve.kernels import reference
from recserve.training.batches import pad
from recserve.training.data import EvaluationSet, Histories
from recserve.training.models.tables import MAX_HISTORY, TableModel

# The twin solves one user at a time in NumPy: more would take minutes and show no more.
MAX_COMPARED = 2000


def write_table(
    writer: BundleWriter, model: TableModel, histories: Histories, recorded: EvaluationSet
) -> Variant:
    """Writes both tables and recorded embeddings.

    ``histories``: those that the bundle brings, row = user; a user whose history it does not bring has no
    row. Raises :class:`CheckFailed` unless the fold-in of serving equals its NumPy twin on the histories of
    ``recorded``.
    """
    items = np.ascontiguousarray(model.item_embeddings.numpy())
    users = model.queries(np.arange(len(histories), dtype=np.int32), histories)
    writer.add_rows(layout.ITEM_EMBEDDINGS, items)
    writer.add_rows(layout.USER_EMBEDDINGS, users)
    sample = recorded.take(evenly_spaced(len(recorded.user_index), MAX_COMPARED))
    parity = _compare_fold_in(model, items, sample)
    golden = io.BytesIO()
    np.savez(golden, **_record(model, users, sample.histories))  # type: ignore[arg-type]
    writer.add_bytes(GOLDEN, golden.getvalue())
    settings = model.fold_in_settings
    entry = VariantEntry(
        query=TABLE,
        golden=GOLDEN,
        size_bytes=items.nbytes + users.nbytes,
        gate=parity.as_dict(),
        fold_in=FoldIn(**dataclasses.asdict(settings)) if settings else None,
    )
    inputs = InputContract(max_history=MAX_HISTORY, features=[layout.HISTORY_INPUT])
    return Variant(entry, inputs, items, parity)


def _compare_fold_in(model: TableModel, items: NDArray[np.float32], sample: EvaluationSet) -> Parity:
    if model.fold_in_settings is None:
        return Parity.of_nothing()
    return check_parity(
        "fold-in parity",
        lambda rows: model.fold(sample.histories.take(rows)),
        lambda rows: model.fold(sample.histories.take(rows), solve=reference.fold_in),
        items,
        sample,
    )


def _record(
    model: TableModel, users: NDArray[np.float32], histories: Histories
) -> dict[str, NDArray[np.generic]]:
    """Returns a few rows of the table and a few fold-ins, which the loader of the bundle replays."""
    user_rows = evenly_spaced(len(users), N_GOLDEN)
    record: dict[str, NDArray[np.generic]] = {
        layout.USER_ROW_RECORD: user_rows,
        layout.USER_EMBEDDING_RECORD: users[user_rows],
    }
    if model.fold_in_settings is not None:
        recorded = histories.take(evenly_spaced(len(histories), N_GOLDEN)).last(MAX_HISTORY)
        longest = max(1, int(recorded.lengths.max(initial=0)))
        record[layout.HISTORY_INPUT], _ = pad(recorded, np.arange(len(recorded)), longest)
        record[layout.QUERY_EMBEDDING_OUTPUT] = model.fold(recorded)
    return record
