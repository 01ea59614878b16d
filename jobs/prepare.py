"""Pack the interactions into a row a user and a row an item, as training by gradient reads them.

    spark-submit jobs/prepare.py --config conf/sample.yaml model=multvae

Reads interactions, users, items. Writes user_rows, item_rows, runs. Training packs what is missing by itself.
"""

from sparkcf.jobs.frame import main
from sparkcf.jobs.prepare import prepare

if __name__ == "__main__":
    main("prepare", prepare)
