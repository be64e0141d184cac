"""Popularity by segment, written into a bundle."""

from collections.abc import Sequence

from recserve.engine.bundle import BundleWriter
from recserve.engine.bundle.segments_entry import SegmentsEntry
from recserve.exporters.request_features import write_features
from recserve.training.data import Dataset
from recserve.training.segments import AUTO, fit_segments

FOLDER = "segments"
ITEMS, SHARES = f"{FOLDER}/items.npy", f"{FOLDER}/shares.npy"


def write_segments(
    writer: BundleWriter, dataset: Dataset, names: Sequence[str] = AUTO
) -> SegmentsEntry | None:
    """Writes the tables of ``fit_segments`` and their vocabularies; None where there are none."""
    tables = fit_segments(dataset, dataset.histories(), names) if names else None
    if tables is None:
        return None
    writer.add_array(ITEMS, tables.items)
    writer.add_array(SHARES, tables.shares)
    features = write_features(writer, FOLDER, tables.features)
    return SegmentsEntry(features, ITEMS, SHARES, tables.items.shape[1])
