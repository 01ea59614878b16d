"""Write a trained run's top-K lists and similar items.

    spark-submit jobs/recommend.py --config conf/sample.yaml topk.k=50 topk.categories='[Comedy]'

Reads the run's factors, interactions, users, items. Writes recommendations, similar_items, runs.
"""

from sparkcf.jobs.frame import main
from sparkcf.jobs.recommend import recommend_run

if __name__ == "__main__":
    main("recommend", recommend_run, __doc__)
