"""The whole night in one session: clean, train, evaluate, recommend, publish.

    spark-submit jobs/nightly.py --config conf/sample.yaml

Reads the input. Writes every table. It may be repeated: the same day gives the same rows.
"""

from sparkcf.jobs.frame import main
from sparkcf.jobs.nightly import nightly

if __name__ == "__main__":
    main("nightly", nightly, __doc__)
