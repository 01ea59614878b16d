"""The night's peer: a script of DuckDB and implicit, as one person writes it for one machine. See night.py.

    python night_script.py LOG OUT csv|jsonl RANK ITERATIONS

Reads the raw log, keeps valid rows and of rows with one key one, holds out a fifth of every user's positives (q2),
fits and measures, fits on everything, and writes clean rows, factors, top-20 lists and similar items as Parquet. Rows
that it drops are not kept and not counted by reason; nothing is versioned, and a second run begins anew.
"""

from __future__ import annotations

import json
import sys
import time

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from implicit.als import AlternatingLeastSquares
from scipy.sparse import csr_matrix

K, LEAST = 20, 5  # of lists; least events of a user and of an item
COLUMNS = "columns={'user_id': 'VARCHAR', 'item_id': 'VARCHAR', 'value': 'DOUBLE', 'ts': 'BIGINT'}, ignore_errors=true"
READ = {
    "csv": lambda log: f"read_csv('{log}', {COLUMNS}, header=true)",
    "jsonl": lambda log: f"read_json('{log}', {COLUMNS}, format='newline_delimited')",
}


def main(log: str, out: str, kind: str, rank: int, iterations: int) -> None:
    seconds: dict[str, float] = {}
    begin = time.perf_counter()

    def done(step: str) -> None:
        nonlocal begin
        now = time.perf_counter()
        seconds[step], begin = now - begin, now

    con = duckdb.connect()
    con.execute("SET threads = 2")
    con.execute(
        f"""CREATE TABLE clean AS SELECT * FROM {READ[kind](log)}
        WHERE user_id <> '' AND item_id <> '' AND value BETWEEN 0.5 AND 5 AND ts > 0
        QUALIFY row_number() OVER (PARTITION BY user_id, item_id, ts ORDER BY value) = 1"""
    )
    for side in ("user", "item"):
        con.execute(
            f"""CREATE TABLE {side}s AS SELECT {side}_id, (row_number() OVER (ORDER BY {side}_id) - 1)::INTEGER AS idx
            FROM (SELECT {side}_id FROM clean GROUP BY {side}_id HAVING count(*) >= {LEAST})"""
        )
        con.execute(f"COPY {side}s TO '{out}/{side}s.parquet'")
    con.execute(f"COPY clean TO '{out}/clean.parquet'")
    done("clean")
    found = con.execute(
        """SELECT u.idx AS user, i.idx AS item, hash(c.user_id, c.item_id) % 5 = 0 AS held
        FROM clean c JOIN users u USING (user_id) JOIN items i USING (item_id) GROUP BY ALL"""
    ).fetchnumpy()
    users, items, held = (np.asarray(found[name]) for name in ("user", "item", "held"))
    n, m = int(users.max()) + 1, int(items.max()) + 1

    def matrix(chosen: np.ndarray) -> csr_matrix:
        return csr_matrix((np.ones(chosen.sum(), np.float32), (users[chosen], items[chosen])), shape=(n, m))

    whole, train, test = (matrix(chosen) for chosen in (np.ones(len(users), bool), ~held, held))
    done("matrix")

    def fitted(pairs: csr_matrix) -> AlternatingLeastSquares:
        model = AlternatingLeastSquares(rank, iterations=iterations, num_threads=2, random_state=1)
        model.fit(pairs, show_progress=False)
        return model

    model = fitted(train)
    measured = np.flatnonzero(np.diff(test.indptr))
    ranked, _ = model.recommend(measured, train[measured], N=K)
    discounts = 1 / np.log2(np.arange(2, K + 2))
    total = 0.0
    for row, user in enumerate(measured):
        truth = test.indices[test.indptr[user] : test.indptr[user + 1]]
        hits = np.isin(ranked[row], truth)
        total += hits @ discounts / discounts[: min(len(truth), K)].sum()
    ndcg = total / len(measured)
    done("evaluation")
    model = fitted(whole)
    done("fit")
    for name, vectors in (("user", model.user_factors), ("item", model.item_factors)):
        rows = pa.FixedSizeListArray.from_arrays(pa.array(np.asarray(vectors).reshape(-1)), rank)
        pq.write_table(pa.table({"idx": np.arange(len(vectors)), "factor": rows}), f"{out}/{name}_factors.parquet")
    done("factors")
    ranked, scores = model.recommend(np.arange(n), whole, N=K)
    write(f"{out}/lists.parquet", "user", ranked, scores)
    done("lists")
    similar, scores = model.similar_items(np.arange(m), N=K + 1)
    write(f"{out}/similar.parquet", "item", similar, scores)
    done("similar items")
    print(json.dumps({"ndcg": float(ndcg), "rows": len(users), "seconds": seconds}))


def write(path: str, name: str, ranked: np.ndarray, scores: np.ndarray) -> None:
    n, k = ranked.shape
    table = pa.table(
        {
            name: np.repeat(np.arange(n), k),
            "rank": np.tile(np.arange(k), n),
            "item": ranked.ravel(),
            "score": scores.ravel(),
        }
    )
    pq.write_table(table, path)


if __name__ == "__main__":
    main(*sys.argv[1:4], *map(int, sys.argv[4:6]))
