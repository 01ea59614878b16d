"""Check a recommended run by the gate and, if it passes, publish it to readers.

    spark-submit jobs/publish.py --config conf/sample.yaml gate.max_fall=0.05

Reads runs, metrics, published. Writes published, runs. Exit code 3: the gate refused; 4: another run was first.
"""

from sparkcf.jobs.frame import main
from sparkcf.jobs.publish import publish_run

if __name__ == "__main__":
    main("publish", publish_run, __doc__)
