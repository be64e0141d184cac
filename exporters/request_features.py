"""What a bundle must know to turn the context of a request into the indices that training used."""

import json
from collections.abc import Sequence

from recserve.engine.bundle import BundleWriter
from recserve.engine.bundle.request_features import CATEGORY, NUMBER, RequestFeature
from recserve.training.ranking.space import Bins, Category


def write_features(
    writer: BundleWriter, folder: str, features: Sequence[Category | Bins | str]
) -> list[RequestFeature]:
    """Writes the vocabularies of ``features`` to ``folder``; returns their entries of the manifest.

    A string is a feature of the moment, by the name of its kind.
    """
    entries = []
    for i, feature in enumerate(features):
        if isinstance(feature, str):
            entries.append(RequestFeature(feature, feature))
        elif isinstance(feature, Category):
            name = f"{folder}/vocabulary-{i}.json"
            writer.add_bytes(name, json.dumps(list(feature.values), ensure_ascii=False).encode())
            entries.append(RequestFeature(feature.name, CATEGORY, vocabulary=name))
        else:
            entries.append(RequestFeature(feature.name, NUMBER, edges=list(feature.edges)))
    return entries
