"""The model families, one file each; a family registers by its name here and a ``FAMILY`` in its file."""

import importlib
from typing import TYPE_CHECKING

from recserve.errors import InvalidRequest, nearest

if TYPE_CHECKING:
    from recserve.training.models.base import Family

MODULES = {
    "sasrec": "sasrec",
    "gru4rec": "gru4rec",
    "bert4rec": "bert4rec",
    "hstu": "hstu",
    "als": "als",
    "bpr": "bpr",
    "svd": "svd",
    "svdpp": "svdpp",
    "dssm": "dssm",
    "lightgcn": "lightgcn",
    "graphsage": "graphsage",
    "gcn": "gcn",
    "ease": "ease",
    "item-knn": "item_knn",
    "tfidf": "tfidf",
    "item2vec": "item2vec",
    "glove": "glove",
    "clusters": "clusters",
    "popularity": "popularity",
    "lr": "lr",
    "fm": "fm",
    "deepfm": "deepfm",
    "dcn": "dcn",
    "dlrm": "dlrm",
    "din": "din",
    "neumf": "neumf",
    "relevance": "relevance",
}


def check_model_name(name: str) -> None:
    """Raises :class:`InvalidRequest` with the nearest name unless ``name`` is a model family."""
    if name not in MODULES:
        raise InvalidRequest(
            "model", found=name, expected=f"one of {', '.join(MODULES)}", cure=nearest(name, MODULES)
        )


def family_of(name: str) -> "Family":
    """Returns the family called ``name``; torch is imported with it."""
    check_model_name(name)
    family: Family = importlib.import_module(f"{__name__}.{MODULES[name]}").FAMILY
    return family
