"""Publishing a run again, and after a kill between the two commits of publishing."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sparkcf.errors import NothingNew
from sparkcf.jobs.publish import publish_run
from sparkcf.lake.published import append_published, history
from sparkcf.lake.runs import find_run, start_run
from sparkcf.lake.tables import LakeTables


def test_a_run_whose_job_was_killed_after_the_commit_of_publishing_is_published(spark, config: Callable) -> None:
    settings = config()
    tables = LakeTables(spark, settings.lake.root)
    run = start_run(tables, "train", settings, {"published": -1})
    run.update("recommended")
    append_published(tables, "als", settings.ds, run.run_id, "publish", 1)
    for _ in range(2):
        with pytest.raises(NothingNew, match=f"run {run.run_id} is published already"):
            publish_run(spark, settings)
        found = find_run(tables, settings, ("published",))
        assert (found.run_id, found.row["reason"]) == (run.run_id, None)
    assert len(history(tables, "als")) == 1
