"""The map of a catalogue: clusters of items and of users by what a model learned, and items in the plane.

Clusters are k-means over vectors of length 1; the plane is that of the two strongest directions of the items
(principal components). A cluster is described by its most popular items and by the words and values that are
more frequent in it than elsewhere.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from recserve.errors import InvalidRequest
from recserve.training.data import Dataset, EvaluationSet
from recserve.training.data.columns import ITEM_ID, USER_ID
from recserve.training.features.text import unit_rows
from recserve.training.features.tfidf import words_of
from recserve.training.kmeans import k_means, nearest_centre
from recserve.training.models.base import EmbeddingModel, RankingModel
from recserve.training.models.sequence import SequenceModel, model_inputs
from recserve.training.run import Run

N_SHOWN = 5
# Items that a word is in, within the cluster, for it to describe the cluster.
MIN_ITEMS_PER_WORD = 2
USERS_PER_STEP = 1024
CLUSTER = "cluster"

Vectors = NDArray[np.float32]
Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class CatalogueMap:
    """item_cluster (n_items,), user_cluster (n_users,) int64 · points (n_items, 2) float32 · silhouettes: of
    items and of users, the simplified one: 1 where clusters are far apart, 0 where they touch."""

    item_cluster: Indices
    user_cluster: Indices
    points: Vectors
    item_silhouette: float
    user_silhouette: float


def catalogue_map(run: Run, n_clusters: int, *, seed: int = 0) -> CatalogueMap:
    """Returns the map of the run's best model; raises :class:`InvalidRequest` if it has no item vectors."""
    if n_clusters < 1:
        raise InvalidRequest("clusters", found=n_clusters, expected="1 or more")
    model = run.best_model()
    if not isinstance(model, EmbeddingModel | SequenceModel):
        raise InvalidRequest(
            f"model {run.config.model} for a map",
            found="without item vectors",
            expected="one of tables (als, ...) or of sequences (sasrec, ...)",
        )
    items = unit_rows(model.item_embeddings.detach().numpy())
    users = unit_rows(user_vectors(model, run.dataset))
    rng = np.random.default_rng(seed)
    (item_centres, item_cluster), (user_centres, user_cluster) = (
        k_means(vectors, min(n_clusters, len(vectors)), rng) for vectors in (items, users)
    )
    return CatalogueMap(
        item_cluster,
        user_cluster,
        plane(items),
        silhouette(items, item_centres, item_cluster),
        silhouette(users, user_centres, user_cluster),
    )


@torch.inference_mode()
def user_vectors(model: RankingModel, dataset: Dataset) -> Vectors:
    """Returns the query embedding of every user, (n_users, d), at the moment of its newest event."""
    histories = dataset.histories()
    known = EvaluationSet(np.arange(dataset.n_users, dtype=np.int32), histories, histories.last(1))
    parts = []
    for start in range(0, dataset.n_users, USERS_PER_STEP):
        rows = np.arange(start, min(start + USERS_PER_STEP, dataset.n_users))
        if isinstance(model, SequenceModel):
            parts.append(model.encode(*model_inputs(model, known, rows)).numpy())
        elif isinstance(model, EmbeddingModel):
            parts.append(model.query_rows(known, rows))
    return np.concatenate(parts)


def plane(vectors: Vectors) -> Vectors:
    """Returns the two strongest coordinates of each of ``vectors`` (n, d), (n, 2) float32; 0 where d is 1."""
    centred = vectors - vectors.mean(0)
    _, directions = np.linalg.eigh(centred.T @ centred)
    points = np.zeros((len(vectors), 2), np.float32)
    strongest = directions[:, ::-1][:, :2]
    points[:, : strongest.shape[1]] = centred @ strongest
    return points


def silhouette(vectors: Vectors, centres: Vectors, cluster: Indices) -> float:
    """Returns the mean of 1 − a/b: a, the distance to the own centre; b, to the nearest other.

    One cluster has 0. Hruschka et al. 2004: Rousseeuw's silhouette with centres in place of all pairs.
    """
    own = np.linalg.norm(vectors - centres[cluster], axis=1)
    other = np.full(len(vectors), np.inf, np.float32)
    for place in np.unique(cluster):
        rest = np.delete(centres, place, axis=0)
        here = np.flatnonzero(cluster == place)
        if len(rest):
            other[here] = np.sqrt(nearest_centre(vectors[here], rest)[1])
    return float(np.where(np.isfinite(other), 1 - own / np.maximum(other, 1e-12), 0).mean())


def describe(run: Run, found: CatalogueMap) -> list[dict[str, Any]]:
    """Returns of each cluster of items: how many, its share of the interactions, its items and its words."""
    dataset = run.dataset
    popularity = dataset.popularity()
    words = [set(counter) for counter in words_of(dataset.items)]
    n_items_with = Counter(word for some in words for word in some)
    names = dataset.items["title"] if "title" in dataset.items.columns else dataset.items[ITEM_ID]
    clusters = []
    for place in range(int(found.item_cluster.max()) + 1):
        rows = np.flatnonzero(found.item_cluster == place)
        here = Counter(word for row in rows.tolist() for word in words[row])
        gain = {
            word: count / len(rows) - n_items_with[word] / dataset.n_items
            for word, count in here.items()
            if count >= MIN_ITEMS_PER_WORD
        }
        best = rows[np.argsort(-popularity[rows], kind="stable")][:N_SHOWN]
        clusters.append(
            {
                CLUSTER: place,
                "n_items": len(rows),
                "share": float(popularity[rows].sum() / max(1, popularity.sum())),
                "words": sorted(gain, key=lambda word: (-gain[word], word))[:N_SHOWN],
                "items": names[best.tolist()].to_list(),
            }
        )
    return clusters


def write_tables(run: Run, found: CatalogueMap, folder: Path) -> None:
    """Writes ``items.parquet`` (id, cluster, x, y; for --items) and ``users.parquet`` (id, cluster)."""
    folder.mkdir(parents=True, exist_ok=True)
    dataset = run.dataset
    labels = [
        pl.Series(CLUSTER, [f"c{one}" for one in of]) for of in (found.item_cluster, found.user_cluster)
    ]
    coordinates = [pl.Series(name, found.points[:, axis]) for axis, name in enumerate("xy")]
    pl.DataFrame([dataset.items[ITEM_ID], labels[0], *coordinates]).write_parquet(folder / "items.parquet")
    pl.DataFrame([dataset.users[USER_ID], labels[1]]).write_parquet(folder / "users.parquet")


def draw(found: CatalogueMap, clusters: list[dict[str, Any]], title: str, path: Path) -> None:
    """Draws the items in the plane, a colour per cluster, each cluster named by its first words."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panel = pyplot.subplots(figsize=(9, 7), layout="constrained")
    colours = pyplot.get_cmap("tab20")
    for cluster in clusters:
        place = cluster[CLUSTER]
        points = found.points[found.item_cluster == place]
        panel.scatter(*points.T, s=6, color=colours(place % 20), alpha=0.6)
        if len(points):
            name = ", ".join(cluster["words"][:2]) or f"c{place}"
            panel.annotate(name, points.mean(0), fontsize=8, ha="center")
    panel.set_title(title)
    panel.set_axis_off()
    figure.savefig(path)
