"""Tuning: a study of 20 ALS trials on ml-1m against as many runs of the train job, as processes of their own.

    python -m tests.bench.tune [--quick] [--trials 20]

The lake is cleaned first. Then one train job, with the parameters in the middle of the search space, and the tune job
with validation, its pruner and the test of the winner take turns; of the train job's seconds the number of trials is
counted. `--quick`: 4 trials on ml-latest-small. Needs ../shared/data.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.bench.public import DATASETS, SHARED, settings
from tests.bench.report import Goal, finish, print_table
from tests.bench.timing import clock

ROOT = Path(__file__).resolve().parents[2]
SPACE = "als.rank: {int: [32, 128], step: 32}\nals.regularization: {log: [0.001, 0.05]}\n"
SPACE += "als.unobserved_weight: {log: [0.05, 1.0]}\n"
MIDDLE = ("als.rank=80", "als.regularization=0.007", "als.unobserved_weight=0.22")
RATIO = 0.3


def job(name: str, *arguments: str) -> dict[str, Any]:
    """Run a job as a process; its last line."""
    command = [sys.executable, str(ROOT / "jobs" / f"{name}.py"), *arguments]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if ended.returncode:
        sys.exit(f"tune: jobs/{name}.py ended with {ended.returncode}:\n{ended.stderr[-3000:]}")
    last: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return last


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    name, trials = ("ml-latest-small", 4) if arguments.quick else ("ml-1m", arguments.trials)
    if not SHARED.is_dir():
        sys.exit(f"tune: {SHARED} is not here: nothing can be measured")
    data, trained, tuned = DATASETS[name], [], []
    with tempfile.TemporaryDirectory() as given:
        folder = Path(given)
        (folder / "space.yaml").write_text(SPACE)
        assert not callable(data.file)
        own = settings(data, SHARED / data.file, folder)
        base = ["--config", "conf/nightly.yaml", "--config", str(own), f"ds={data.ds}", f"lake.root={folder}/lake"]
        job("clean", *base)
        told: dict[str, Any] = {}
        for turn in range(arguments.rounds):
            trained.append(clock(lambda: job("train", *base, *MIDDLE)))
            study = [f"tune.space={folder}/space.yaml", f"tune.folder={folder}/{turn}", f"tune.trials={trials}"]
            study += [f"tune.winner={folder}/{turn}.yaml", "evaluation.protocol=q2"]
            tuned.append(clock(lambda study=study: told.update(job("tune", *base, *study))))
        rows = json.loads(Path(told["study"]).with_suffix(".json").read_text())["trials"]
    train, whole = min(trained), min(tuned)
    states = [row["state"] for row in rows]
    table = [
        ("a train job", f"{train:.1f}", ""),
        (f"{trials} train jobs, by that", f"{trials * train:.1f}", ""),
        (f"a study of {trials} trials", f"{whole:.1f}", f"{states.count('pruned')} stopped early"),
        ("of these, the trials' own", f"{sum(row['seconds'] for row in rows):.1f}", "summed over the tasks"),
    ]
    print_table(("what", "seconds", ""), table)
    best = f"{told['best']['value']:.4f} on validation, {told['test']['value']:.4f} on test"
    print(f"best: {told['best']['params']}: NDCG@100 {best}")
    ratio = whole / (trials * train)
    finish("tune", name, [Goal(f"{trials} ALS trials on {name} ÷ {trials} train jobs", ratio, RATIO, False)])


if __name__ == "__main__":
    main()
