"""Schema of every table of the lake: columns with their comments, key, partitions and constraints.

Table schemas are defined only here. Writers select exactly these columns, in this order.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from pyspark.sql.types import (
    ArrayType,
    BinaryType,
    BooleanType,
    DataType,
    DateType,
    DoubleType,
    FloatType,
    IntegerType,
    LongType,
    MapType,
    StringType,
    StructField,
    StructType,
    TimestampType,
)

STRING, INT, LONG, DOUBLE = StringType(), IntegerType(), LongType(), DoubleType()
VECTOR = ArrayType(FloatType())
QUANTILE = StructType([StructField("level", DoubleType()), StructField("value", DoubleType())])


@dataclass(frozen=True)
class Table:
    """One Delta table.

    key : columns that identify a row.
    index : column of the dense index, in a table that gives ids dense indices.
    earliest : column of which a known id keeps the smallest value.
    mutable : columns that may change for a known id.
    """

    name: str
    comment: str
    schema: StructType
    key: tuple[str, ...] = ()
    partition_by: tuple[str, ...] = ()
    index: str = ""
    earliest: str = ""
    mutable: tuple[str, ...] = ()
    constraints: dict[str, str] = field(default_factory=dict)  # name -> SQL condition


def column(name: str, dtype: DataType, comment: str, nullable: bool = False) -> StructField:
    return StructField(name, dtype, nullable, {"comment": comment})


CLAIM = StructType(  # an event's state in an earlier day's load, which a later day's load corrected
    [
        StructField("ds", DateType()),
        StructField("value", DOUBLE),
        StructField("context", MapType(STRING, STRING)),
        StructField("source", STRING),
    ]
)

INTERACTIONS = Table(
    "interactions",
    "cleaned events",
    StructType(
        [
            column("user_id", STRING, "external id of the user"),
            column("item_id", STRING, "external id of the item"),
            column("event", STRING, "kind of the event"),
            column("value", DOUBLE, "its value, such as a rating; 1 where the input has none"),
            column("ts", TimestampType(), "time of the event"),
            column("context", MapType(STRING, STRING), "texts of the configured context columns", nullable=True),
            column("source", STRING, "input file"),
            column("ds", DateType(), "logical date of the load that the row comes from"),
            column("replaced", ArrayType(CLAIM), "states from loads of earlier days, oldest first", nullable=True),
        ]
    ),
    key=("user_id", "item_id", "event", "ts"),
    partition_by=("ds",),
    constraints={"ids_present": "user_id <> '' AND item_id <> ''"},
)

QUARANTINE = Table(
    "quarantine",
    "rejected input rows",
    StructType(
        [
            column("ds", DateType(), "logical date of the load"),
            column("reason", STRING, "reason of the rejection, from a closed list"),
            column("raw", STRING, "the row as read; invalid UTF-8 is replaced", nullable=True),
            column("raw_bytes", BinaryType(), "bytes of the row, if the text has replacements", nullable=True),
            column("source", STRING, "input file"),
        ]
    ),
    partition_by=("ds",),
)

USERS = Table(
    "users",
    "every user ever seen, with their attributes",
    StructType(
        [
            column("user_id", STRING, "external id"),
            column("user_idx", INT, "dense index, never changed"),
            column("first_seen", TimestampType(), "earliest event; null: none yet", nullable=True),
            column("attributes", MapType(STRING, STRING), "attributes that are texts, by name", nullable=True),
            column("numbers", MapType(STRING, DOUBLE), "numeric attributes by name", nullable=True),
        ]
    ),
    key=("user_id",),
    index="user_idx",
    earliest="first_seen",
    mutable=("attributes", "numbers"),
)

ITEMS = Table(
    "items",
    "every item ever seen, with its attributes",
    StructType(
        [
            column("item_id", STRING, "external id"),
            column("item_idx", INT, "dense index, never changed"),
            column("first_seen", TimestampType(), "earliest event; null: none yet", nullable=True),
            column("title", STRING, "title, as in the input", nullable=True),
            column("categories", ArrayType(STRING), "categories, as in the input", nullable=True),
            column("attributes", MapType(STRING, STRING), "attributes that are texts, by name", nullable=True),
            column("numbers", MapType(STRING, DOUBLE), "numeric attributes by name", nullable=True),
            column("vectors", MapType(STRING, VECTOR), "precomputed vectors of content by name", nullable=True),
        ]
    ),
    key=("item_id",),
    index="item_idx",
    earliest="first_seen",
    mutable=("title", "categories", "attributes", "numbers", "vectors"),
)


FEATURES = Table(
    "features",
    "texts that are features of a factorization machine, with their numbers",
    StructType(
        [
            column("feature", STRING, "field=value"),
            column("feature_idx", INT, "dense index over all fields, never changed"),
            column("field", STRING, "column of the text: categories, users.NAME, items.NAME or interactions.NAME"),
            column("value", STRING, "the text"),
        ]
    ),
    key=("feature",),
    index="feature_idx",
    mutable=("field", "value"),
)


def _rows(side: str, other: str) -> Table:
    return Table(
        f"{side}_rows",
        f"one {side}'s interactions packed into a row, for training; every file is one row group",
        StructType(
            [
                column(f"{side}_idx", INT, f"dense index of the {side}"),
                column("items", BinaryType(), f"dense indices of the {other}s, ascending, int32 little-endian"),
                column("values", BinaryType(), "their values, float32 little-endian"),
                column("count", INT, f"{other}s in the row"),
                column("split", STRING, "train or validation"),
                column("snapshot", STRING, "name from logical date, table versions and parameters"),
            ]
        ),
        key=("snapshot", f"{side}_idx"),
        partition_by=("snapshot", "split"),
    )


USER_ROWS = _rows("user", "item")
ITEM_ROWS = _rows("item", "user")

EXAMPLE_ROWS = Table(
    "example_rows",
    "a pair's target and features packed into a row, for gradient descent; every file is one row group",
    StructType(
        [
            column("user_idx", INT, "dense index of the user"),
            column("items", BinaryType(), "0 and the features, int32 little-endian"),
            column("values", BinaryType(), "the target and the features' values, float32 little-endian"),
            column("count", INT, "entries in the row"),
            column("split", STRING, "train"),
            column("snapshot", STRING, "name from logical date, table versions and parameters"),
        ]
    ),
    partition_by=("snapshot", "split"),
)


def _factors(side: str) -> Table:
    return Table(
        f"{side}_factors",
        f"the {side}s' vectors of every kept run",
        StructType(
            [
                column(f"{side}_idx", INT, f"dense index of the {side}"),
                column(f"{side}_id", STRING, f"external id of the {side}"),
                column("factor", VECTOR, "vector, float32 (rank,)"),
                column("bias", FloatType(), "added to the inner product"),
                column("latent", VECTOR, "mean of the latent vector, if the factor is not that", nullable=True),
                column("model", STRING, "model's name"),
                column("run_id", STRING, "run that wrote the row"),
            ]
        ),
        key=("run_id", f"{side}_idx"),
        partition_by=("model", "run_id"),
    )


USER_FACTORS = _factors("user")
ITEM_FACTORS = _factors("item")

FEATURE_FACTORS = Table(
    "feature_factors",
    "parameters of every feature of a factorization machine's run, averaged over the samples",
    StructType(
        [
            column("field", STRING, "name of the field"),
            column("feature_idx", INT, "user_idx, item_idx, or the feature's number in its field"),
            column("factor", VECTOR, "v, float32 (rank,)"),
            column("bias", FloatType(), "w"),
            column("samples", VECTOR, "[v, w] of every sample, if predictions need them", nullable=True),
            column("model", STRING, "model's name"),
            column("run_id", STRING, "run that wrote the row"),
        ]
    ),
    key=("run_id", "field", "feature_idx"),
    partition_by=("model", "run_id"),
)

ITEM_CONCEPTS = Table(
    "item_concepts",
    "how much every item belongs to each concept of a run",
    StructType(
        [
            column("item_idx", INT, "dense index of the item"),
            column("item_id", STRING, "external id of the item"),
            column("concept", INT, "number of the concept, from 0"),
            column("probability", FloatType(), "that the item belongs to it; of an item they sum to 1"),
            column("users", INT, "users of the training who have the item"),
            column("model", STRING, "model's name"),
            column("run_id", STRING, "run that made it"),
        ]
    ),
    key=("run_id", "item_idx", "concept"),
    partition_by=("model", "run_id"),
)


def _groups(side: str) -> Table:
    return Table(
        f"{side}_groups",
        f"group and mixture weights of every {side} of a run",
        StructType(
            [
                column(f"{side}_idx", INT, f"dense index of the {side}"),
                column(f"{side}_id", STRING, f"external id of the {side}"),
                column("group_number", INT, "number of the group, from 0; null: in no group", nullable=True),
                column("weights", MapType(STRING, FloatType()), f"the {side}'s mixture weight of each component"),
                column("model", STRING, "model's name"),
                column("run_id", STRING, "run that made it"),
            ]
        ),
        key=("run_id", f"{side}_idx"),
        partition_by=("model", "run_id"),
    )


USER_GROUPS, ITEM_GROUPS = _groups("user"), _groups("item")

RECOMMENDATIONS = Table(
    "recommendations",
    "top-K lists; see `published` for the run to read",
    StructType(
        [
            column("ds", DateType(), "logical date"),
            column("user_id", STRING, "external id of the user"),
            column("position", INT, "place in the list, from 1"),
            column("item_id", STRING, "external id of the item"),
            column("score", FloatType(), "comparable only inside one list"),
            column(
                "reason",
                STRING,
                "model, exploration or fallback (popularity), or the reason in words: topk.reasons, topk.concepts",
            ),
            column("model", STRING, "model's name"),
            column("run_id", STRING, "run that wrote the row"),
        ]
    ),
    key=("run_id", "user_id", "position"),
    partition_by=("model", "run_id"),
)

PREDICTIONS = Table(
    "predictions",
    "predicted values (or probabilities) of the pairs in `predict.path`",
    StructType(
        [
            column("ds", DateType(), "logical date"),
            column("user_id", STRING, "external id of the user"),
            column("item_id", STRING, "external id of the item"),
            column("value", DOUBLE, "predicted value; classification: probability"),
            column("sd", DOUBLE, "standard deviation of the prediction; null: the model has none", nullable=True),
            column("quantiles", ArrayType(QUANTILE), "`predict.quantiles`; null: no distribution", nullable=True),
            column("component", STRING, "component of the largest weight; null: no distribution", nullable=True),
            column("ts", TimestampType(), "time of the requested pair", nullable=True),
            column("context", MapType(STRING, STRING), "context of the requested pair", nullable=True),
            column("known_user", BooleanType(), "whether the run has a vector of the user"),
            column("known_item", BooleanType(), "whether the run has a vector of the item"),
            column("model", STRING, "model's name"),
            column("run_id", STRING, "run that wrote the row"),
        ]
    ),
    key=("run_id", "user_id", "item_id", "ts", "context"),
    partition_by=("model", "run_id"),
)

SIMILAR_ITEMS = Table(
    "similar_items",
    "nearest items by cosine of their factors",
    StructType(
        [
            column("ds", DateType(), "logical date"),
            column("item_id", STRING, "external id of the item"),
            column("position", INT, "place in the list, from 1"),
            column("similar_item_id", STRING, "external id of the neighbour"),
            column("score", FloatType(), "cosine, -1 to 1"),
            column("model", STRING, "model's name"),
            column("run_id", STRING, "run that wrote the row"),
        ]
    ),
    key=("run_id", "item_id", "position"),
    partition_by=("model", "run_id"),
)

RUNS = Table(
    "runs",
    "every run of every job, failed ones included",
    StructType(
        [
            column("run_id", STRING, "id of the run: one fit, or one load"),
            column("job", STRING, "job of the run: clean, prepare, train, fold_in, compare, tune, forget or maintain"),
            column("model", STRING, "model's name", nullable=True),
            column("ds", DateType(), "logical date"),
            column(
                "state",
                STRING,
                "running, refused, failed, expired, or the last step that was done: trained, …",
            ),
            column("reason", STRING, "why the run was refused or failed", nullable=True),
            column("config", STRING, "resolved configuration, JSON"),
            column("code_version", STRING, "version of sparkcf"),
            column("inputs", MapType(STRING, LONG), "versions of the tables read"),
            column("seed", LONG, "seed of every random draw"),
            column("started_at", TimestampType(), "start of the run"),
            column("updated_at", TimestampType(), "last change of this row"),
            column("counts", MapType(STRING, LONG), "rows in and out, by name"),
            column("ended_at", TimestampType(), "end of the run's last step; null: none yet", nullable=True),
            column(
                "seconds",
                MapType(STRING, DOUBLE),
                "time by step; outer/inner: part of the outer step",
                nullable=True,
            ),
            column("peak_bytes", LONG, "largest resident memory of a Python process; null: not seen", nullable=True),
            column("application_id", STRING, "Spark's id of the application that wrote the row last", nullable=True),
        ]
    ),
    key=("run_id",),
)

METRICS = Table(
    "metrics",
    "measures of runs",
    StructType(
        [
            column("run_id", STRING, "measured run"),
            column(
                "system",
                STRING,
                "model; popularity: the baseline; plain, reranked: lists before and after the rules of rerank",
            ),
            column("protocol", STRING, "q1 to q4; fit: logged while training"),
            column("metric", STRING, "measure's name"),
            column("k", INT, "length of the list; null: none; for protocol fit the sweep", nullable=True),
            column("value", DOUBLE, "mean over the users"),
            column("lower", DOUBLE, "2.5 % bound by bootstrap", nullable=True),
            column("upper", DOUBLE, "97.5 % bound by bootstrap", nullable=True),
            column("users", LONG, "users counted", nullable=True),
            column(
                "segment",
                STRING,
                "part measured; null: all; warm, cold: users with and without a vector; activity, popularity, "
                "category: see `evaluate`; dimension N; concept N",
                nullable=True,
            ),
            column("settings", STRING, "settings of the test, JSON; only equal ones are comparable", nullable=True),
            column("replicates", ArrayType(DOUBLE), "the value in every bootstrap replicate", nullable=True),
        ]
    ),
    key=("run_id", "system", "protocol", "metric", "k", "segment"),
)

COMPARISONS = Table(
    "comparisons",
    "models compared on one snapshot; their quality is in `metrics` under the row's run",
    StructType(
        [
            column("comparison_id", STRING, "id of the comparison: a snapshot and a list of models"),
            column("position", INT, "place of the model in the list, from 1"),
            column("name", STRING, "name of the model's file, without its ending"),
            column("model", STRING, "model's name"),
            column("ds", DateType(), "logical date"),
            column("compared_at", TimestampType(), "start of the comparison's last run"),
            column("state", STRING, "waiting, measured or failed"),
            column("reason", STRING, "why the model failed", nullable=True),
            column("run_id", STRING, "run of the measurement; null: none yet", nullable=True),
            column("snapshot", STRING, "digest of day, table versions, test, lists and code; equal: comparable"),
            column("settings", STRING, "settings of the fit, JSON"),
            column("inputs", MapType(STRING, LONG), "versions of the tables read"),
            column("code_version", STRING, "version of sparkcf"),
            column("protocol", STRING, "q1 to q4"),
            column("metric", STRING, "measure that is shown first"),
            column("at", INT, "length of the measure's list; null: none", nullable=True),
            column("heldout", STRING, "digest of the held-out pairs", nullable=True),
            column("slots", INT, "task slots of Spark", nullable=True),
            column("pairs", LONG, "pairs of the train part", nullable=True),
            column("train_seconds", DOUBLE, "time of the fit of the train part", nullable=True),
            column("peak_bytes", LONG, "largest resident memory of a Python process; null: not seen", nullable=True),
            column("stored_bytes", LONG, "files of the stored fit; null: not measured", nullable=True),
            column("list_users", LONG, "users who got lists", nullable=True),
            column("list_k", INT, "length of their lists", nullable=True),
            column("list_seconds", DOUBLE, "time of the lists of all users", nullable=True),
            column("measured_at", TimestampType(), "end of the measurement", nullable=True),
        ]
    ),
    key=("comparison_id", "name"),
)

PUBLISHED = Table(
    "published",
    "the run that readers see; the newest row of a model and day wins",
    StructType(
        [
            column("model", STRING, "model's name"),
            column("ds", DateType(), "logical date"),
            column("sequence", LONG, "1, 2, … for one model and day"),
            column("run_id", STRING, "run that readers see"),
            column("action", STRING, "publish or rollback"),
            column("published_by", STRING, "user who published"),
            column("published_at", TimestampType(), "time of publishing"),
            column("versions", MapType(STRING, LONG), "table versions that hold the run's rows"),
        ]
    ),
    key=("model", "ds", "sequence"),
)

FORGOTTEN = Table(
    "forgotten",
    "users who were forgotten; a load keeps out rows whose user's hash is here",
    StructType(
        [
            column("hash", STRING, "SHA-256 of the salt and the user's id, hexadecimal"),
            column("salt", STRING, "the lake's salt, the same in every row"),
            column("user_idx", INT, "dense index that the user had, never given again", nullable=True),
            column("forgotten_at", TimestampType(), "time of the request's job"),
            column("forgotten_by", STRING, "user who ran the job"),
            column("run_id", STRING, "run of the job; its counts are in `runs`"),
            column("counts", MapType(STRING, LONG), "the user's rows that were removed, by table"),
            column("sealed", MapType(STRING, LONG), "versions of tables from which on no row is theirs", nullable=True),
            column("sealed_at", TimestampType(), "when that was so; null: the job did not get there", nullable=True),
            column("purged_at", TimestampType(), "when the files of earlier versions were removed", nullable=True),
        ]
    ),
    key=("hash",),
)

TABLES: dict[str, Table] = {
    t.name: t
    for t in (
        INTERACTIONS,
        QUARANTINE,
        USERS,
        ITEMS,
        FEATURES,
        USER_ROWS,
        ITEM_ROWS,
        EXAMPLE_ROWS,
        USER_FACTORS,
        ITEM_FACTORS,
        FEATURE_FACTORS,
        ITEM_CONCEPTS,
        USER_GROUPS,
        ITEM_GROUPS,
        RECOMMENDATIONS,
        PREDICTIONS,
        SIMILAR_ITEMS,
        RUNS,
        METRICS,
        COMPARISONS,
        PUBLISHED,
        FORGOTTEN,
    )
}
PER_RUN = tuple(t.name for t in TABLES.values() if t.partition_by == ("model", "run_id"))  # tables of runs' results
PER_USER = tuple(t.name for t in TABLES.values() if "user_id" in t.schema.names)  # tables that name users
