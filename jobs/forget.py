"""Forget users: remove them from every table and keep them out of later loads.

    spark-submit jobs/forget.py --config conf/sample.yaml forget.path=requests.csv

Reads and writes every table that names users. Run jobs/maintain.py to remove the files of earlier versions; run this
again to prove that no file names them.
"""

from sparkcf.jobs.forget import check_request, forget_users
from sparkcf.jobs.frame import main

if __name__ == "__main__":
    main("forget", forget_users, __doc__, check=check_request)
