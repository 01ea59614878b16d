"""Checks of Python and Java before anything else is imported.

This file runs first. Its syntax is old enough for an older Python to run it and print the error.
"""

import os
import re
import shutil
import subprocess
import sys

PYTHON = (3, 11)
JAVA = (8, 11, 17)


def check_python(version=None):
    # type: (tuple | None) -> None
    """Exit with code 2 unless the Python version is the one of the pinned dependencies."""
    version = version or sys.version_info[:2]
    if tuple(version) != PYTHON:
        sys.stderr.write(
            "sparkcf: Python %d.%d is needed, this is %d.%d: run `make setup` and use .venv/bin/python\n"
            % (PYTHON + tuple(version))
        )
        raise SystemExit(2)


def java_executable():
    # type: () -> str | None
    """The java that Spark will start: from JAVA_HOME, else from the PATH; None if there is none."""
    home = os.environ.get("JAVA_HOME")
    if home:
        candidate = os.path.join(home, "bin", "java")
        return candidate if os.access(candidate, os.X_OK) else None
    return shutil.which("java")


def java_version():
    # type: () -> int | None
    """Major version of `java_executable` (8, 11, 17, …); None if there is no java or its output has no version."""
    java = java_executable()
    if java is None:
        return None
    out = subprocess.run([java, "-version"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    found = re.search(r'version "(\d+)(?:\.(\d+))?', out.stdout)
    if not found:
        return None
    major = int(found.group(1))
    return int(found.group(2)) if major == 1 and found.group(2) else major


def java_problem():
    # type: () -> str | None
    """Error message about the installed Java, or None if it is usable."""
    version = java_version()
    if version is None:
        where = "JAVA_HOME=%s" % os.environ["JAVA_HOME"] if os.environ.get("JAVA_HOME") else "the PATH"
        return "no Java found in %s: install a Java 17 runtime or set JAVA_HOME to one" % where
    if version not in JAVA:
        return "Java %d does not run Spark 3.5: install Java 17 or set JAVA_HOME to it" % version
    return None
