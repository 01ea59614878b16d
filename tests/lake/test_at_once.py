"""Calls at the same time: all are waited for, their Spark jobs are of the caller's group, the first error is raised."""

from __future__ import annotations

import threading

import pytest
from pyspark.sql import SparkSession

from sparkcf.lake.at_once import at_once


def test_calls_run_at_the_same_time() -> None:
    both = threading.Barrier(2, timeout=10)  # broken, if one call waits for the other's end
    at_once(both.wait, both.wait)


def test_the_first_error_is_raised_when_all_calls_have_ended() -> None:
    done: list[str] = []
    released = threading.Event()

    def second() -> None:
        released.set()
        raise ValueError("second")

    def first() -> None:
        released.wait(10)
        raise KeyError("first")

    def third() -> None:
        released.wait(10)
        done.append("third")

    with pytest.raises(KeyError, match="first"):
        at_once(first, second, third)
    assert done == ["third"]


def test_spark_jobs_belong_to_the_group_of_the_caller(spark: SparkSession) -> None:
    context, seen = spark.sparkContext, set()
    context.setJobGroup("night", "a night")
    try:
        at_once(*2 * [lambda: seen.add(context.getLocalProperty("spark.jobGroup.id"))])
    finally:
        context._jsc.clearJobGroup()
    assert seen == {"night"}
