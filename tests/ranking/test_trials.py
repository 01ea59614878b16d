"""Trials on arrays fold users in by what the ordinary evaluation folds in."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from sparkcf.data.split import Split
from sparkcf.models.contract import InnerProduct
from sparkcf.models.contract_data import LocalFit, Saved, UserBlock
from sparkcf.ranking.trials import measured, share_split


class Noting(InnerProduct):
    """Notes the rows that it folds in."""

    def fold_in(self, rows, features=None):
        self.folded = rows
        return np.ones((len(rows[0]) - 1, 2), np.float32), np.zeros(len(rows[0]) - 1, np.float32)


def test_users_are_folded_in_with_the_weights_of_their_pairs(spark) -> None:
    train = spark.sql("SELECT 0 AS user_idx, 0 AS item_idx, 4D AS value, 0.5D AS weight")
    rows = spark.sql(
        "SELECT 5 AS user_idx, 3 AS item_idx, 2D AS value, 0.25D AS weight UNION ALL SELECT 5, 1, 3D, 0.75D "
        "UNION ALL SELECT 2, 0, 1D, 0.125D UNION ALL SELECT 7, 0, 1D, 9D"
    )
    heldout = spark.sql("SELECT 5 AS user_idx, 0 AS item_idx, 1D AS value UNION ALL SELECT 2, 1, 1D")
    split = Split(train, train, rows, rows.select("user_idx", "item_idx"), train, heldout, "")
    data = share_split(spark, split, (8, 4), folded=True)
    scorer = Noting(Saved(np.ones((4, 2), np.float32), np.zeros(4, np.float32), np.ones(4, bool)))
    users = UserBlock(np.zeros((8, 2), np.float32), np.zeros(8, np.float32), np.zeros(8, bool))
    model = SimpleNamespace(open=lambda saved: scorer)
    measured(model, LocalFit(scorer, users), data, data.state.open(), ("ndcg_at_k", 2))
    expected = ([0, 1, 3], [0, 1, 3], [1, 3, 2], [0.125, 0.75, 0.25])
    assert [part.tolist() for part in scorer.folded] == [list(part) for part in expected]
