"""Popularity by segment, written into a bundle."""

import json
from collections.abc import Sequence

from recserve.engine.bundle import BundleWriter
from recserve.engine.bundle.request_features import CATEGORY, NUMBER, RequestFeature
from recserve.engine.bundle.segments_entry import SegmentsEntry
from recserve.training.data import Dataset
from recserve.training.ranking.space import Category
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
    features = []
    for i, feature in enumerate(tables.features):
        if isinstance(feature, str):
            features.append(RequestFeature(feature, feature))
        elif isinstance(feature, Category):
            name = f"{FOLDER}/vocabulary-{i}.json"
            writer.add_bytes(name, json.dumps(list(feature.values), ensure_ascii=False).encode())
            features.append(RequestFeature(feature.name, CATEGORY, vocabulary=name))
        else:
            features.append(RequestFeature(feature.name, NUMBER, edges=list(feature.edges)))
    return SegmentsEntry(features, ITEMS, SHARES, tables.items.shape[1])
