"""Full disks and folders of temporary files that cannot be written: messages that name the path."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from typing import Any

from sparkcf.config.root import Config
from sparkcf.errors import ConfigError, SparkcfError, first_line
from sparkcf.lake.roots import free_space, local_folder

FULL = "No space left on device"


def scratch_folders(spark_settings: Mapping[str, str]) -> list[str]:
    """The folders of Spark's temporary files on this machine. Those of a YARN container are YARN's own."""
    given = os.environ.get("SPARK_LOCAL_DIRS") or spark_settings.get("spark.local.dir", "")
    return [place.strip() for place in given.split(",") if place.strip()] or [tempfile.gettempdir()]


def check_scratch(spark_settings: Mapping[str, str]) -> None:
    """Raise ConfigError if none of the folders can be written. Spark would end the process with exit code 53."""
    problems = []
    for place in scratch_folders(spark_settings):
        try:
            os.makedirs(place, exist_ok=True)
            os.rmdir(tempfile.mkdtemp(prefix="sparkcf-", dir=place))
            return
        except OSError as error:
            problems.append(f"{place} ({error.strerror or error})")
    raise ConfigError(
        f"Spark's temporary files cannot be written to {', '.join(problems)}: change the rights, free space, or name "
        "another folder by SPARK_LOCAL_DIRS or spark.local.dir"
    )


def explain_full_disk(error: Exception, config: Config, spark: Any) -> None:
    """Raise an error that names the folders that a job writes to, the fullest first, if the error is of a full disk."""
    if not any(FULL in str(each) for each in (error, error.__cause__, error.__context__)):
        return
    lake = local_folder(config.lake.root)
    places = [*([lake] if lake else []), *scratch_folders(dict(spark.sparkContext.getConf().getAll()))]
    by_space = sorted(free_space(places), key=lambda found: found[1])
    shown = ", ".join(f"{free / 2**20:,.0f} MiB free at {place}" for place, free in by_space)
    kind = type(error) if isinstance(error, SparkcfError) else SparkcfError
    raise kind(
        f"{first_line(error)}: on this machine {shown}: free space, or name other folders by lake.root and "
        "spark.local.dir"
    ) from error
