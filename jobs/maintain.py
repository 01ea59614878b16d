"""Keep the lake small: remove runs that cannot be rolled back to, old files and checkpoints; join small files.

    spark-submit jobs/maintain.py --config conf/sample.yaml

Reads runs, published, forgotten. Changes the files of every table, not the rows that readers see.
"""

from sparkcf.jobs.frame import main
from sparkcf.jobs.maintain import maintain

if __name__ == "__main__":
    main("maintain", maintain, __doc__)
