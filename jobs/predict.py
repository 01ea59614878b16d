"""Predict the values of a table of pairs, by a run of fm, or of als or hals in mode explicit.

    spark-submit jobs/predict.py --config conf/sample.yaml --config conf/models/fm.yaml predict.path=pairs.csv

Reads runs, published, user_factors, item_factors. Writes predictions.
"""

from sparkcf.jobs.frame import main
from sparkcf.jobs.predict import predict_pairs

if __name__ == "__main__":
    main("predict", predict_pairs, __doc__)
