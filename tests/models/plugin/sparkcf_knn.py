"""Item-based k-nearest neighbours: a model in a package of its own, which sparkcf finds by its entry point."""

from typing import ClassVar

import numpy as np
from scipy.sparse import csr_matrix

from sparkcf.config.section import ModelSection, Positive
from sparkcf.data.pairs import Reads
from sparkcf.models.contract import Model, Scorer
from sparkcf.models.contract_data import Fitted


class KNNConfig(ModelSection):
    """Its parameters, under the key `knn`."""

    section: ClassVar[str] = "knn"
    neighbours: Positive = 50


class KNN(Model[KNNConfig]):
    """Cosine between items, of which each keeps its nearest."""

    section = KNNConfig
    scores_rows = True
    reads = Reads("positives")
    width = 0

    def fit(self, data, run):
        pairs = data.pairs.select("user_idx", "item_idx", "value").toPandas()
        x = csr_matrix((pairs["value"], (pairs["user_idx"], pairs["item_idx"])), (data.n_users, data.n_items))
        length = np.sqrt(x.power(2).sum(axis=0).A1).clip(1e-9)
        cosine = (x.T @ x).toarray() / length / length[:, None]
        np.fill_diagonal(cosine, 0)
        least = -np.sort(-cosine, axis=1)[:, min(self.params.neighbours, data.n_items) - 1]
        weights = np.where(cosine >= least[:, None], cosine, 0).astype(np.float32)
        return Fitted.without_vectors(data.pairs, {"weights": weights})

    def open(self, saved):
        return KNNScorer(saved)

    def shapes(self, data):
        return {"weights": (data.n_items, data.n_items)}


class KNNScorer(Scorer):
    def __init__(self, saved):
        self.known_items, self.weights = saved.item_known, saved.arrays["weights"]

    def score_block(self, users):
        indptr, indices, values, _ = users.rows
        return csr_matrix((values, indices, indptr), (len(users), len(self.weights))) @ self.weights

    def fold_in(self, rows, features=None):
        n = len(rows[0]) - 1
        return np.zeros((n, 0), np.float32), np.zeros(n, np.float32)

    def similar_block(self, items):
        return self.weights[items]
