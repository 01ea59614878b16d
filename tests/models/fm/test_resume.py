"""Sweeps that were interrupted go on from the last saved one, as if nothing had happened."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sparkcf.config.fm import FMConfig
from sparkcf.models.fm.arrays import fit_fm_arrays
from sparkcf.training.saved_sweeps import SavedSweeps
from tests.models.fm.test_fit import Data, M, N, as_labels, configured, gang_samples, make


class Killed(Exception):
    pass


def fitted(made: Data, config: FMConfig, folder: Path, die_after: int = 0, said: list | None = None):
    def heard(entry: dict) -> None:
        if said is not None and "sweep" in entry:
            said.append(entry["sweep"])
        if entry.get("sweep") == die_after:
            raise Killed

    return fit_fm_arrays(made.data, made.fields, N, M, config, 1, 1, heard, str(folder))


@pytest.mark.parametrize("learner", ["als", "mcmc"])
@pytest.mark.parametrize("task", ["regression", "classification"])
def test_an_interrupted_fit_ends_as_one_that_was_not(learner: str, task: str, tmp_path: Path) -> None:
    made = make() if task == "regression" else as_labels(make())
    config = configured(learner=learner, task=task, iterations=9, burn_in=2, samples=4, save_every=2)
    whole = fitted(made, config, tmp_path / "whole")
    with pytest.raises(Killed):
        fitted(made, config, tmp_path / "cut", die_after=7)
    swept: list[int] = []
    again = fitted(made, config, tmp_path / "cut", said=swept)
    assert swept == [7, 8, 9] and not (tmp_path / "cut").exists()
    assert [entry["sweep"] for entry in again.log] == list(range(1, 10))
    for (w0, table), (expected_w0, expected) in zip(again.samples, whole.samples, strict=True):
        assert w0 == expected_w0
        np.testing.assert_array_equal(table, expected)


def test_any_number_of_workers_goes_on(tmp_path: Path) -> None:
    made, config = make(), configured(learner="mcmc", iterations=7, burn_in=1, samples=6, save_every=3)
    whole = gang_samples(made, config, 1)
    gang_samples(made, config, 2, saved=SavedSweeps(str(tmp_path)))
    assert (tmp_path / "sweep-000006.json").exists()
    (tmp_path / "sweep-000003.json").unlink()
    again = gang_samples(made, config, 3, saved=SavedSweeps(str(tmp_path)))
    assert len(again) == len(whole) == 6
    for (w0, table), (expected_w0, expected) in zip(again, whole, strict=True):
        assert w0 == pytest.approx(expected_w0, abs=1e-4)
        np.testing.assert_allclose(table, expected, atol=2e-3)


def test_a_field_of_items_alone_has_no_rows_of_users(tmp_path: Path) -> None:
    made = make(several=False)
    fields = tuple(f for f in made.fields if f.name != "user")
    config = configured(iterations=5, save_every=2, fields=configured().fields[1:3])
    whole = fitted(replace(made, fields=fields), config, tmp_path / "a")
    with pytest.raises(Killed):
        fitted(replace(made, fields=fields), config, tmp_path / "b", die_after=5)
    swept: list[int] = []
    again = fitted(replace(made, fields=fields), config, tmp_path / "b", said=swept)
    assert swept == [5]
    np.testing.assert_array_equal(again.samples[0][1], whole.samples[0][1])
