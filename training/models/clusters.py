"""Popularity by cluster: what is popular among the users most like this one.

Users fall into clusters by k-means over what they had (distinct items, rare ones counting more, in a few
dimensions: Deerwester et al. 1990). An item has its share of the interactions of each cluster; a user is the
cluster's row, and somebody new the clusters in which the history is popular.
"""

from dataclasses import dataclass

import numpy as np

from recserve.errors import InvalidRequest
from recserve.training.data import Histories
from recserve.training.features.tfidf import latent, tfidf
from recserve.training.kmeans import k_means
from recserve.training.models.base import ONE_EPOCH, Family
from recserve.training.models.interactions import Pairs
from recserve.training.models.tables import LearnedTables

# Dimensions in which users are compared.
COMPARED_SIZE = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class ClustersConfig:
    """The settings of the clusters."""

    n_clusters: int = 16

    def __post_init__(self) -> None:
        if not 1 <= self.n_clusters <= 1024:
            raise InvalidRequest("n_clusters", found=self.n_clusters, expected="1 to 1024")


class Clusters(LearnedTables):
    """A column per cluster: a user has 1 in that of its own, an item its share of the interactions there."""

    def __init__(self, config: ClustersConfig, n_users: int, n_items: int) -> None:
        size = config.n_clusters
        super().__init__(np.zeros((n_users, size), np.float32), np.zeros((n_items, size), np.float32))
        self.config = config

    def fit_epoch(self, train: Histories, *, epoch: int, seed: int) -> float:
        """Finds the clusters; returns the mean squared distance of a user to the centre of its own."""
        pairs = Pairs(train, self.n_items)
        ones = np.ones(len(pairs), np.int64)
        vectors = latent(tfidf(pairs.users, pairs.items, ones, (len(train), self.n_items)), COMPARED_SIZE)
        known = np.flatnonzero(train.lengths)
        centres, cluster = k_means(vectors[known], self.config.n_clusters, np.random.default_rng(seed))
        users, items = self.user_embeddings.numpy(), self.item_embeddings.numpy()
        users[known, cluster] = 1
        cluster_of = np.zeros(len(train), np.int64)
        cluster_of[known] = cluster
        np.add.at(items, (pairs.items, cluster_of[pairs.users]), 1)
        items /= np.maximum(1, items.sum(axis=0))
        return float(((vectors[known] - centres[cluster]) ** 2).sum(axis=1).mean())


FAMILY = Family(settings=ClustersConfig, create=Clusters, budget=ONE_EPOCH, loop_options=frozenset({"seed"}))
