"""The gang on Spark: the same factors as in one process, whatever the workers, the partitions or a killed worker."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from sparkcf.config.factorization import ALSConfig
from sparkcf.data.pairs import popularity
from sparkcf.data.partitions import partition_keys
from sparkcf.errors import ConfigError, TrainingError
from sparkcf.models.als.fit import ALS, Factors, fit, fit_arrays
from sparkcf.models.contract_data import Fitted
from sparkcf.ranking.scorers import share_fitted
from sparkcf.ranking.topk import Catalogue, share_ranker, top_k
from sparkcf.training import gang_stage
from sparkcf.training.blocks import ITEM, KINDS, USER, build_blocks, exchange_routes, places, row_ids
from sparkcf.training.gang import Alone, check_slots
from sparkcf.training.shuffle import shuffled
from tests.models.als.dense_als import Problem, random_problem, with_defaults
from tests.training.gangs import in_gang, parts_of

Make = Callable[..., DataFrame]


@pytest.fixture(scope="module")
def frame(spark: SparkSession) -> Make:
    def make(problem: Problem, partitions: int = 2) -> DataFrame:
        users, items, values = problem.triples()
        rows = pd.DataFrame({"user_idx": users, "item_idx": items, "value": values})
        schema = "user_idx int, item_idx int, value float"
        return spark.createDataFrame(rows, schema).repartition(partitions)

    return make


def arrays(fitted: Fitted, problem: Problem) -> dict[str, np.ndarray]:
    """The fitted frames as dense arrays, zeros where a row is missing."""
    found: dict[str, np.ndarray] = {}
    for side, given, n in zip(KINDS, (fitted.user_factors, fitted.item_factors), problem.seen.shape, strict=True):
        rows = given.collect()
        factors, bias = np.zeros((n, problem.config.rank), np.float32), np.zeros(n, np.float32)
        for row in rows:
            factors[row["idx"]], bias[row["idx"]] = row["factor"], row["bias"]
        assert sorted(row["idx"] for row in rows) == np.flatnonzero(problem.seen.any(axis=int(side == "user"))).tolist()
        found |= {side: factors, f"{side}_bias": bias}
    return found


def assert_same(found: dict[str, np.ndarray], expected: Factors | dict[str, np.ndarray], tolerance: float) -> None:
    for name, values in found.items():
        other = expected[name] if isinstance(expected, dict) else getattr(expected, name)
        np.testing.assert_allclose(values, other, atol=tolerance * max(np.abs(other).max(), 1e-3), err_msg=name)


@pytest.mark.parametrize(
    ("form", "workers"),
    [("ials", 1), ("ials", 2), ("hu_koren", 2), ("implicit", 2), ("explicit", 2), ("biases", 1), ("biases", 2)],
)
def test_gang_of_any_size_fits_what_one_process_fits(frame: Make, form: str, workers: int) -> None:
    problem = random_problem(form, n=31, m=20, rank=4, workers=workers)
    alone = fit_arrays(*problem.triples(), 31, 20, problem.config, 3)
    fitted = fit(frame(problem), 31, 20, problem.config, 3)
    try:
        assert_same(arrays(fitted, problem), alone, 1e-5)
        assert fitted.mean == pytest.approx(alone.mean)
        for entry, expected in zip(fitted.log, alone.log, strict=True):
            for part in ("sweep", "objective", "observed", "unobserved", "regularization", "singular_rows"):
                assert entry[part] == pytest.approx(expected[part], rel=1e-5, abs=1e-4), part
    finally:
        fitted.release()


def test_gang_solves_by_conjugate_gradient_as_one_process_does(frame: Make) -> None:
    problem = random_problem("ials", n=31, m=20, rank=4, workers=2, solver="cg", cg_steps=2)
    fitted = fit(frame(problem), 31, 20, problem.config, 3)
    assert_same(arrays(fitted, problem), fit_arrays(*problem.triples(), 31, 20, problem.config, 3), 1e-5)
    fitted.release()


def test_factors_and_lists_do_not_depend_on_the_input_partitions(spark: SparkSession, frame: Make) -> None:
    problem = random_problem("hu_koren", n=40, m=30, rank=4, workers=2)
    users = spark.range(40).select(F.col("id").cast("int").alias("idx"))
    found, lists = [], []
    for partitions in (1, 2, 7):
        pairs = frame(problem, partitions)
        fitted = fit(pairs, 40, 30, problem.config, 3)
        found.append(arrays(fitted, problem))
        model = ALS(problem.config, 3)
        scorer = share_fitted(spark, model, fitted, 30)
        ranker = share_ranker(spark, scorer, Catalogue.of(popularity(pairs), 30))
        seen = pairs.groupBy("user_idx").agg(F.collect_set("item_idx").alias("seen"))
        asked = users.join(fitted.user_factors.select("idx", "factor"), on="idx", how="left")
        asked = asked.withColumnRenamed("idx", "user_idx").join(seen, on="user_idx", how="left")
        ranked = top_k(asked.repartition(partitions), ranker, 4, 8)
        lists.append(sorted(tuple(row) for row in ranked.collect()))
        fitted.release()
    assert len(lists[0]) == 40 * 8
    for other in (1, 2):
        assert_same(found[other], found[0], 1e-5)
        assert lists[other] == lists[0]


def test_pairs_given_twice_count_as_one_on_spark(frame: Make) -> None:
    problem = random_problem("biases", n=20, m=15, workers=2)
    pairs = frame(problem)
    twice = pairs.withColumn("value", F.col("value") * 0.25).union(pairs.withColumn("value", F.col("value") * 0.75))
    fitted = fit(twice, 20, 15, problem.config, 3)
    assert_same(arrays(fitted, problem), fit_arrays(*problem.triples(), 20, 15, problem.config, 3), 1e-5)
    fitted.release()


def test_a_worker_without_a_row_takes_part(frame: Make) -> None:
    problem = random_problem("ials", n=7, m=5, workers=2)
    problem.seen[:] = False
    problem.seen[4, 2] = True  # one pair, user and item both of worker 0
    problem.values = np.where(problem.seen, 3.0, 0.0)
    fitted = fit(frame(problem), 7, 5, problem.config, 3)
    assert_same(arrays(fitted, problem), fit_arrays(*problem.triples(), 7, 5, problem.config, 3), 1e-5)
    fitted.release()


def test_blocks_are_the_documented_example() -> None:
    users, items = np.array([0, 0, 1, 2, 2]), np.array([0, 3, 1, 0, 3])
    blocks = in_gang(2, lambda gang: build_blocks(parts_of(users, items, gang), (3, 4), 2, gang)[USER])
    assert [asked.tolist() for asked in blocks[0].needed] == [[0], [1]]
    assert blocks[0].indptr.tolist() == [0, 2, 4] and blocks[0].indptr.dtype == np.int64
    assert blocks[0].indices.tolist() == [0, 1, 0, 1] and blocks[0].indices.dtype == np.int32
    assert [asked.tolist() for asked in blocks[1].needed] == [[], [0]]
    assert (blocks[1].indptr.tolist(), blocks[1].indices.tolist()) == ([0, 1], [0])


@pytest.mark.parametrize(("n", "workers"), [(0, 2), (1, 3), (7, 1), (7, 2), (6, 3), (8, 3)])
def test_every_row_lives_at_one_place_of_one_worker(n: int, workers: int) -> None:
    ids = [row_ids(n, rank, workers) for rank in range(workers)]
    assert sorted(np.concatenate(ids)) == list(range(n))
    for rank, rows in enumerate(ids):
        assert len(rows) == places(n, rank, workers)
        assert (rows % workers == rank).all() and (rows // workers == np.arange(len(rows))).all()


def test_a_gang_of_one_sends_its_rows_to_itself() -> None:
    blocks = build_blocks(parts_of(np.array([0, 1]), np.array([4, 2]), Alone()), (2, 6), 2, Alone())
    exchange_routes(blocks, Alone())
    assert blocks[USER].sends[0].tolist() == [2, 4] and blocks[USER].indices.tolist() == [1, 0]


@pytest.mark.parametrize("partitions", [1, 2, 3, 7])
def test_partition_keys_lead_to_their_partitions(spark: SparkSession, partitions: int) -> None:
    keys = partition_keys(partitions)
    rows = spark.createDataFrame([(key, number) for number, key in enumerate(keys)], "key int, number int")
    placed = rows.repartition(partitions, "key").select("number", F.spark_partition_id().alias("partition")).collect()
    assert len(placed) == partitions
    assert all(row["number"] == row["partition"] for row in placed)


def test_every_pair_reaches_the_worker_of_its_user_and_that_of_its_item(frame: Make) -> None:
    problem = random_problem("ials", n=25, m=18)
    sent = shuffled(frame(problem), 3).select("*", F.spark_partition_id().alias("worker")).collect()
    found = {USER: set(), ITEM: set()}
    for row in sent:
        own = row["row"] * 3 + row["worker"]
        found[row["kind"]].add((own, row["col"], row["value"]))
    pairs = {(int(u), int(i), float(v)) for u, i, v in zip(*problem.triples(), strict=True)}
    assert len(sent) == 2 * len(pairs)
    assert found[USER] == pairs
    assert found[ITEM] == {(i, u, v) for u, i, v in pairs}


def test_weights_travel_with_the_pairs(spark: SparkSession) -> None:
    problem = random_problem("biases", n=25, m=18, workers=2)
    users, items, values = problem.triples()
    weights = np.random.default_rng(5).integers(1, 4, len(users)).astype(np.float32)
    rows = [(int(u), int(i), float(v), float(w)) for u, i, v, w in zip(users, items, values, weights, strict=True)]
    pairs = spark.createDataFrame(rows, "user_idx int, item_idx int, value double, weight double")
    warm_start = {"user": spark.createDataFrame([(0, [0.1, 0.2, 0.3, 0.0])], "idx int, factor array<float>")}
    fitted = fit(pairs, 25, 18, problem.config, 3, warm_start=warm_start)
    assert_same(
        arrays(fitted, problem), fit_arrays(users, items, values, 25, 18, problem.config, 3, weights=weights), 1e-5
    )
    fitted.release()


def test_too_many_workers_are_refused_at_once(spark: SparkSession, frame: Make) -> None:
    pairs, config = frame(random_problem("ials")), with_defaults(ALSConfig(), workers=3)
    begin = time.monotonic()
    with pytest.raises(ConfigError, match=r"als\.workers=3 but Spark has 2 task slots.*lower it"):
        fit(pairs, 12, 9, config, 1)
    assert time.monotonic() - begin < 5  # Spark itself would try for minutes
    assert check_slots(spark, None) == 2 and check_slots(spark, 1) == 1


def test_dynamic_allocation_is_refused() -> None:
    class Conf:
        def get(self, key: str, default: str) -> str:
            return "true" if key == "spark.dynamicAllocation.enabled" else default

    class Session:
        @property
        def sparkContext(self) -> Session:
            return self

        def getConf(self) -> Conf:
            return Conf()

    with pytest.raises(ConfigError, match=r"spark\.dynamicAllocation\.enabled=true.*set it to false"):
        check_slots(Session(), 1)


def test_the_driver_hears_of_every_sweep(frame: Make) -> None:
    problem = random_problem("ials", workers=2)
    heard: list[dict[str, Any]] = []
    fitted = fit(frame(problem), 12, 9, problem.config, 3, on_progress=heard.append)
    fitted.release()
    deadline = time.monotonic() + 10
    while len(heard) < 5 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert heard == fitted.log
    assert [entry["sweep"] for entry in heard] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("form", ["hu_koren", "biases"])
def test_a_warm_start_goes_on_from_the_given_factors(frame: Make, form: str) -> None:
    problem = random_problem(form, n=30, m=20, rank=5, workers=2, regularization=0.01)
    whole = fit(frame(problem), 30, 20, problem.config, 3)
    vector = F.concat("factor", F.array("bias")) if form == "biases" else F.col("factor")
    sides = {"user": whole.user_factors, "item": whole.item_factors}
    warm_start = {side: factors.select("idx", vector.alias("factor")) for side, factors in sides.items()}
    warm = fit(frame(problem), 30, 20, with_defaults(problem.config, iterations=1), 4, warm_start=warm_start)
    longer = fit_arrays(*problem.triples(), 30, 20, with_defaults(problem.config, iterations=6), 3)
    assert warm.log[0]["objective"] < whole.log[-1]["objective"] < whole.log[0]["objective"]
    assert_same(arrays(warm, problem), longer, 1e-4)  # the sixth sweep, whatever the seed
    whole.release()
    warm.release()


@pytest.mark.parametrize("row", [4, 5])
def test_a_worker_that_fails_tells_the_driver_in_one_line(frame: Make, row: int) -> None:
    problem = random_problem("explicit", workers=2)
    problem.values[row, np.flatnonzero(problem.seen[row])[0]] = np.nan
    with pytest.raises(TrainingError) as told:
        fit(frame(problem), 12, 9, problem.config, 3)
    message = str(told.value)
    assert message.startswith(f"user row {row} is not finite: raise als.regularization (now 0.1)")
    assert "\n" not in message


@pytest.mark.parametrize("form", ["ials", "biases"])
def test_no_pair_at_all_is_told_on_spark(frame: Make, form: str) -> None:
    problem = random_problem(form, workers=2)
    with pytest.raises(TrainingError, match="no positive interaction"):
        fit(frame(problem).where("value < 0"), 12, 9, problem.config, 3)


@pytest.mark.parametrize("save_every", [0, 1])
def test_a_killed_worker_is_started_again_and_the_result_is_the_same(
    frame: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save_every: int
) -> None:
    problem = random_problem("ials", n=31, m=20, rank=4, workers=2, timeout_s=20, save_every=save_every)
    diary = str(tmp_path / "diary")

    @contextmanager
    def joined(size: int, timeout_s: int, report_to: Any) -> Iterator[Any]:
        from sparkcf.training.gang import joined as whole

        class Doomed:
            """Dies once, where the second sweep is over: in the middle of saving it, or at the begin of the third."""

            def __init__(self, gang: Any) -> None:
                self._gang, self.rank, self.size = gang, gang.rank, gang.size

            def __getattr__(self, name: str) -> Any:
                return getattr(self._gang, name)

            def report(self, message: dict[str, Any]) -> None:
                self._gang.report(message)
                if self.rank == 1:
                    with open(diary, "a") as file:
                        file.write(f"{message['sweep']} ")

            def sum(self, array: Any) -> Any:
                self.die_once()
                return self._gang.sum(array)

            def exchange(self, parts: Any) -> Any:
                self.die_once()
                return self._gang.exchange(parts)

            def die_once(self) -> None:
                if self.rank == 1 and os.path.exists(diary) and open(diary).read() == "1 2 ":
                    with open(diary, "a") as file:
                        file.write("died ")
                    os.kill(os.getpid(), signal.SIGKILL)

        with whole(size, timeout_s, report_to) as gang:
            yield Doomed(gang)

    monkeypatch.setattr(gang_stage, "joined", joined)
    saved = tmp_path / "progress"
    fitted = fit(frame(problem), 31, 20, problem.config, 3, checkpoint_dir=str(saved))
    again = "2 3 4 5 " if save_every else "1 2 3 4 5 "
    assert Path(diary).read_text() == "1 2 died " + again
    assert_same(arrays(fitted, problem), fit_arrays(*problem.triples(), 31, 20, problem.config, 3), 1e-5)
    assert [entry["sweep"] for entry in fitted.log] == [1, 2, 3, 4, 5]
    assert not saved.exists()  # the fit has ended well
    fitted.release()


def test_hundreds_of_sweeps_are_one_stage_and_leave_the_driver_as_it_was(spark: SparkSession, frame: Make) -> None:
    problem = random_problem("ials", workers=2, save_every=0)
    jvm, tracker = spark.sparkContext._jvm, spark.sparkContext.statusTracker()

    def used(iterations: int) -> tuple[int, int]:
        """Stages of a fit, and the JVM's memory after it."""
        group = f"sweeps-{iterations}"
        spark.sparkContext.setJobGroup(group, group)
        fitted = fit(frame(problem), 12, 9, with_defaults(problem.config, iterations=iterations), 3)
        assert len(fitted.log) == iterations
        fitted.release()
        stages = sum(len(tracker.getJobInfo(job).stageIds) for job in tracker.getJobIdsForGroup(group))
        jvm.System.gc()
        runtime = jvm.Runtime.getRuntime()
        return stages, runtime.totalMemory() - runtime.freeMemory()

    few, before = used(2)
    many, after = used(300)
    spark.sparkContext.setLocalProperty("spark.jobGroup.id", None)
    assert many == few
    assert after - before < 30 << 20
