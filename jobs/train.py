"""Fit the model on the interactions up to the logical date, as a new run.

    spark-submit jobs/train.py --config conf/sample.yaml als.rank=128 train.warm_start=true

Reads interactions, users, items (with warm_start also the published factors). Writes user_factors, item_factors,
metrics, runs.
"""

from sparkcf.jobs.frame import main
from sparkcf.jobs.train import train_model

if __name__ == "__main__":
    main("train", train_model, __doc__)
