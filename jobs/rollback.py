"""Publish an earlier run again: `run_id=…`, or the run published before the current one.

    spark-submit jobs/rollback.py --config conf/sample.yaml run_id=als-20180925-20180926T021500-1f2e3d

Reads runs, published. Writes published.
"""

from sparkcf.jobs.frame import main
from sparkcf.jobs.publish import rollback

if __name__ == "__main__":
    main("rollback", rollback, __doc__)
