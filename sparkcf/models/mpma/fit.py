"""MPMA on Spark: a mixture of a global, a user-local and an item-local factorization, fitted by a gang.

    pairs, groups of columns ──one shuffle──▶ two copies ──▶ sweeps and EM ──▶ rows of users and items, weights, sds

`fit_arrays` fits in this process; both call `sparkcf.models.mpma.train.train_mixture`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparkcf.config.factorization import MPMAConfig
from sparkcf.data.arrow import vectors_to_arrow
from sparkcf.data.pairs import Reads
from sparkcf.errors import ConfigError
from sparkcf.lake.arrays import Shapes
from sparkcf.models.contract import Model, check_unweighted
from sparkcf.models.contract_data import (
    F32,
    FitFigure,
    FitRun,
    Fitted,
    LocalData,
    LocalFit,
    LocalRun,
    Saved,
    TrainingData,
    UserBlock,
)
from sparkcf.models.mpma.layout import NAMES
from sparkcf.models.mpma.scorer import MPMAScorer
from sparkcf.models.mpma.train import NOTHING, MixturePlan, Trained, train_mixture
from sparkcf.models.mpma.weights import ALL_KINDS
from sparkcf.spark import DataFrame, F
from sparkcf.training.blocks import NO_WEIGHTS, Parts, row_ids
from sparkcf.training.gang import Alone, Gang, check_slots, worker_threads
from sparkcf.training.gang_stage import gang_result, text_rows, value_rows
from sparkcf.training.saved_sweeps import SavedSweeps
from sparkcf.training.shuffle import read_parts, shuffled

RESULT = "kind string, text string, idx int, factor array<float>"
FEATURES = "array<struct<feat: int, val: float>>"
BATCH = 10_000
I32 = NDArray[np.int32]


class MPMA(Model[MPMAConfig]):
    """Mixture probabilistic matrix approximation: predicts a distribution of a rating."""

    section = MPMAConfig
    fits_locally = True

    @property
    def reads(self) -> Reads:
        return Reads("values", attributes=bool(self._columns()))

    @property
    def width(self) -> int:
        return self.params.width_of("user")

    @property
    def item_width(self) -> int:
        return self.params.width_of("item")

    @property
    def rounds(self) -> int:
        return self.params.base_iterations + self.params.iterations + self.params.refit_iterations

    def check_settings(self, pairs: DataFrame) -> None:
        check_unweighted(pairs, "model=mpma")
        check_slots(pairs.sparkSession, self.params.workers, self.name)

    def fit(self, data: TrainingData, run: FitRun) -> Fitted:
        """Fit by a gang in one barrier stage.

        Raises
        ------
        ConfigError
            Too few task slots, dynamic allocation, weights of events, or a group column that no row has.
        TrainingError
            No rating, fewer rows than groups, or a factor is not finite.
        """
        check_unweighted(data.pairs, "model=mpma")
        if run.warm_start:
            run.on_progress({"note": "train.warm_start is ignored: mpma starts from random factors"})
        given = {name: groups.withColumn("factor", F.array(F.col("group").cast("float"))) for name, groups in
                 ((name, self._groups(data, name)) for name in self._columns())}  # fmt: skip
        spark, config = data.pairs.sparkSession, self.params
        workers = check_slots(spark, config.workers, config.section)
        plan = MixturePlan(config, data.n_users, data.n_items, self.seed, worker_threads(spark))
        saved = SavedSweeps(run.checkpoint_dir) if run.checkpoint_dir and config.save_every else None
        columns = tuple(given)

        def work(batches: Iterable[Any], gang: Gang) -> Iterator[Any]:
            parts = read_parts(batches, bool(columns), 1)
            trained = train_mixture(parts, _given(parts, columns, plan, gang), plan, gang, saved)
            yield from _result(trained, plan, gang)

        rows = shuffled(data.pairs.select("user_idx", "item_idx", "value"), workers, given or None)
        with gang_result(rows, work, RESULT, workers, config.timeout_s, run.on_progress, NOTHING) as (cached, messages):
            if saved and (problem := saved.clear()):  # no reason to fail the fit
                run.on_progress({"note": f"saved sweeps cannot be removed from {run.checkpoint_dir}: {problem}"})
            texts = {kind: json.loads(text) for kind, text in messages}
            arrays = {name: np.array(values) for name, values in texts["shared"].items()}
            user, item = (
                cached.where(F.col("kind") == name).select("idx", "factor", F.lit(0.0).cast("float").alias("bias"))
                for name in NAMES
            )
            mean, log = texts["mean"], texts["log"]
            self._tell(arrays, run)
            figures = _figures(arrays, config)
            arrays = {name: array for name, array in arrays.items() if not name.endswith("_sizes")}
            return Fitted(user, item, log, mean, mean, arrays, figures=figures, cached=cached)

    def fit_local(self, data: LocalData, run: LocalRun) -> LocalFit:
        """Fit in this process; see `fit_arrays`."""
        if self._columns():
            raise ConfigError("mpma.user_group_column and item_group_column are read by the jobs only: leave them out")
        if data.weights is not None:
            raise ConfigError("model=mpma weighs every rating 1: set preference.weight=one and no half_life_days")
        sizes, threads = (data.n_users, data.n_items), data.threads
        pairs = (data.users, data.items, data.values)
        trained, _ = fit_arrays(*pairs, *sizes, self.params, self.seed, threads, run.on_progress)
        user, item = trained.rows
        arrays = {name: array for name, array in trained.shared.items() if not name.endswith("_sizes")}
        no_bias = np.zeros(data.n_items, np.float32)
        saved = Saved(item, no_bias, trained.present[1], arrays, trained.mean, trained.mean)
        return LocalFit(
            saved, UserBlock(user, np.zeros(data.n_users, np.float32), trained.present[0]), list(trained.log)
        )

    def readable(self, fitted: Fitted) -> Mapping[str, DataFrame]:
        """`user_groups` and `item_groups`, from the last numbers of the stored rows: see `layout.py`."""
        names = self.params.components
        tables = {}
        for side, rows in zip(NAMES, (fitted.user_factors, fitted.item_factors), strict=True):
            group = F.element_at("factor", -1).cast("int")
            weights = F.slice("factor", -1 - len(names), len(names))
            tables[f"{side}_groups"] = rows.select(
                F.col("idx").alias(f"{side}_idx"),
                F.when(group >= 0, group).alias("group_number"),
                F.map_from_arrays(F.array(*map(F.lit, names)), weights).alias("weights"),
            )
        return tables

    def open(self, saved: Saved) -> MPMAScorer:
        return MPMAScorer(saved, self.params)

    def shapes(self, data: TrainingData) -> Shapes:
        config, n = self.params, len(self.params.components)
        shapes: dict[str, tuple[int, ...]] = {"kind": (1,), "overall": (n,), "sds": (n,)}
        shapes["table"] = (config.user_groups + 1, config.item_groups + 1, n)
        shapes["user_weights"] = (config.user_groups + 1, n)
        for name, groups in zip(NAMES, (config.user_groups, config.item_groups), strict=True):
            shapes |= {f"{name}_centres": (groups, config.rank), f"{name}_large": (groups,)}
        return shapes

    def user_features(self, data: TrainingData, fitted: Fitted) -> DataFrame | None:
        """The group of every user that a column gives, as one feature."""
        if "user" not in self._columns():
            return None
        feature = F.struct(F.col("group").alias("feat"), F.lit(1.0).cast("float").alias("val"))
        groups = self._groups(data, "user").withColumnRenamed("idx", "user_idx")
        return groups.select("user_idx", F.array(feature).cast(FEATURES).alias("features"))

    def _columns(self) -> dict[str, str]:
        """Attribute that gives the groups, by side; only sides with one that a component needs."""
        config = self.params
        columns = {"user": config.user_group_column, "item": config.item_group_column}
        used = {"user": any(config.split("item")), "item": any(config.split("user"))}
        return {name: column for name, column in columns.items() if column is not None and used[name]}

    def _groups(self, data: TrainingData, side: str) -> DataFrame:
        """idx, group: the rows of a side whose attribute is among the most frequent values.

        Raises ConfigError if there is no table, or no row has the attribute.
        """
        column, frame = self._columns()[side], getattr(data, f"{side}s")
        number = {"user": self.params.user_groups, "item": self.params.item_groups}[side]
        key = f"mpma.{side}_group_column={column}"
        if frame is None:
            raise ConfigError(f"{key}: there is no table of {side}s: set input.{side}s, or leave the column out")
        known = frame.select(F.col(f"{side}_idx").alias("idx"), F.col("attributes")[column].alias("value"))
        known = known.where("value IS NOT NULL")
        largest = known.groupBy("value").count().orderBy(F.desc("count"), "value").limit(number).collect()
        if not largest:
            raise ConfigError(f"{key}: no row of {side}s has it: set input.{side}s.columns.attributes")
        numbers = [(row["value"], place) for place, row in enumerate(largest)]
        named = frame.sparkSession.createDataFrame(numbers, "value string, group int")
        size = {"user": data.n_users, "item": data.n_items}[side]
        return known.join(F.broadcast(named), on="value", how="inner").select("idx", "group").where(F.col("idx") < size)

    def _tell(self, arrays: dict[str, NDArray[Any]], run: FitRun) -> None:
        """Report rows that have no local component."""
        for name in NAMES:
            without = int(arrays[f"{name}_group_sizes"][0])
            other = NAMES[1 - NAMES.index(name)]
            if any(self.params.split(other)) and without:
                run.on_progress({"note": f"{without:,} {name}s are in no group of mpma.min_group: no local component"})


def fit_arrays(
    users: I32,
    items: I32,
    values: F32,
    n_users: int,
    n_items: int,
    config: MPMAConfig,
    seed: int,
    threads: int = 1,
    on_progress: Callable[[dict[str, Any]], None] | None = None,
    checkpoint_dir: str | None = None,
    groups: tuple[I32 | None, I32 | None] = (None, None),
) -> tuple[Trained, MPMAScorer]:
    """Fit in this process, for notebooks, tests and small data. Arrays (nnz,), each pair once.

    `groups` : of users and of items, int32 (n,), -1 for none; None: by k-means.

    Returns the fit, whose `rows` are those of users and of items, and a scorer of it.
    """
    plan = MixturePlan(config, n_users, n_items, seed, threads)
    users, items, values = users.astype(np.int32), items.astype(np.int32), values.astype(np.float32)
    parts = Parts([(users, items, values, NO_WEIGHTS), (items, users, values, NO_WEIGHTS)], [None, None])
    saved = SavedSweeps(checkpoint_dir) if checkpoint_dir else None
    trained = train_mixture(parts, list(groups), plan, Alone(on_progress), saved)
    item_rows = trained.rows[1]
    bias = np.zeros(n_items, np.float32)
    whole = Saved(item_rows, bias, trained.present[1], trained.shared, trained.mean, trained.mean)
    return trained, MPMAScorer(whole, config)


def _given(parts: Parts, columns: tuple[str, ...], plan: MixturePlan, gang: Gang) -> list[I32 | None]:
    """The groups of a worker's rows, where a column gives them."""
    given: list[I32 | None] = [None, None]
    for side, name in enumerate(NAMES):
        if name in columns:
            groups = np.full(len(row_ids(plan.sizes[side], gang.rank, gang.size)), -1, np.int32)
            if (received := parts.warm_start[side]) is not None:
                groups[received[0]] = received[1][:, 0].astype(np.int32)
            given[side] = groups
    return given


def _result(trained: Trained, plan: MixturePlan, gang: Gang) -> Iterator[Any]:
    """A worker's rows, and from the first worker what all share, as Arrow batches of RESULT."""
    import pyarrow as pa

    if gang.rank == 0:
        yield text_rows(RESULT, "log", [json.dumps(trained.log)])
        yield text_rows(RESULT, "mean", [json.dumps(trained.mean)])
        yield text_rows(RESULT, "shared", [json.dumps({name: a.tolist() for name, a in trained.shared.items()})])
    for side, name in enumerate(NAMES):
        present = np.flatnonzero(trained.present[side])
        ids = row_ids(plan.sizes[side], gang.rank, gang.size).astype(np.int32)
        for first in range(0, len(present), BATCH):
            rows = present[first : first + BATCH]
            yield value_rows(RESULT, name, pa.array(ids[rows]), vectors_to_arrow(trained.rows[side][rows]))


def _figures(arrays: dict[str, NDArray[Any]], config: MPMAConfig) -> list[FitFigure]:
    """Weights and standard deviations by component, those weights by user group and item group, and groups' sizes."""
    figures = []
    for t, name in enumerate(config.components):
        figures.append(FitFigure("mixture_weight", float(arrays["overall"][t]), name))
        figures.append(FitFigure("mixture_sd", float(arrays["sds"][t]), name))
        if ALL_KINDS[int(arrays["kind"][0])] == "group":
            for (g, h), weight in np.ndenumerate(arrays["table"][..., t]):
                numbers = (_group(g, config.user_groups), _group(h, config.item_groups))
                figures.append(FitFigure("group_weight", float(weight), "groups {}, {}: {}".format(*numbers, name)))
    for side in NAMES:
        for number, size in enumerate(arrays[f"{side}_group_sizes"].tolist()):
            group = "no group" if number == 0 else f"group {number - 1}"
            figures.append(FitFigure(f"{side}s_in_group", float(size), group))
    return figures


def _group(number: int, n_groups: int) -> str:
    return str(number) if number < n_groups else "none"
