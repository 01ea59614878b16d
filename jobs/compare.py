"""Train and measure several models on one snapshot, with the same split and the same users. Nothing is published.

    spark-submit jobs/compare.py --config conf/sample.yaml --config conf/compare.yaml

Reads interactions, users, items, comparisons. Writes comparisons, metrics, runs (fm: features). `sparkcf compare`
shows the result. Run it again to go on where it ended.
"""

from sparkcf.config.compare import compared
from sparkcf.jobs.compare import compare_models
from sparkcf.jobs.frame import main

if __name__ == "__main__":
    main("compare", compare_models, __doc__, check=compared)
