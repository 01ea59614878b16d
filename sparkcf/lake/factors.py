"""Tables of a run's fit: `user_factors`, `item_factors` and the further tables of a model."""

from __future__ import annotations

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from sparkcf.lake.tables import LakeTables

SIDES = ("user", "item")


def of_run(model: str, run_id: str) -> str:
    """Partition predicate of a run, as SQL text; the configuration has checked both names."""
    return f"model = '{model}' AND run_id = '{run_id}'"


def write_factors(tables: LakeTables, side: str, factors: DataFrame, ids: DataFrame, model: str, run_id: str) -> int:
    """Write a side's factors with their external ids; returns their number.

    Parameters
    ----------
    factors : idx, factor, bias, and latent if the factor is not the latent vector itself.
    ids : the table `users` or `items` at the version that the run was trained on.
    """
    frame = factors.withColumnRenamed("idx", f"{side}_idx")
    latent = [] if "latent" in frame.columns else [F.lit(None).alias("latent")]
    named = frame.join(ids.select(f"{side}_idx", f"{side}_id"), on=f"{side}_idx", how="inner").select("*", *latent)
    write_new_run(tables, f"{side}_factors", named, model, run_id)
    return read_of_run(tables, f"{side}_factors", model, run_id).count()


def write_new_run(tables: LakeTables, name: str, rows: DataFrame, model: str, run_id: str) -> None:
    """Append the rows of a run that has none yet to a table partitioned by model and run."""
    tables.append(name, rows.select("*", F.lit(model).alias("model"), F.lit(run_id).alias("run_id")))


def replace_of_run(tables: LakeTables, name: str, rows: DataFrame, model: str, run_id: str) -> None:
    """Replace a run's rows in a table partitioned by model and run."""
    labelled = rows.select("*", F.lit(model).alias("model"), F.lit(run_id).alias("run_id"))
    tables.replace(name, labelled, of_run(model, run_id))


def read_of_run(tables: LakeTables, name: str, model: str, run_id: str) -> DataFrame:
    """Read a run's rows of a table partitioned by model and run."""
    return tables.read(name).where(of_run(model, run_id))


def read_factors(tables: LakeTables, side: str, model: str, run_id: str) -> DataFrame:
    """Read idx, factor, bias of a run's users or items."""
    rows = read_of_run(tables, f"{side}_factors", model, run_id)
    return rows.select(F.col(f"{side}_idx").alias("idx"), "factor", "bias")
