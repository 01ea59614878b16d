"""Airflow in an environment of its own, `.airflow-env` beside `.venv`: its packages do not go together with ours."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PINS = Path(__file__).with_name("requirements.txt")
HOME = ROOT / ".airflow-env"
BUILT_FROM = HOME / "requirements.txt"  # a copy of the pins, written last
OUT_OF_REACH = "Retrying (Retry("  # what pip says when it reaches no index


class OutOfReach(Exception):
    """No package index gives Airflow."""


def airflow_bin() -> Path:
    """The folder of Airflow's commands. Built once, and again when the pins change.

    Raises OutOfReach without a package index, CalledProcessError if the pins cannot be installed.
    """
    if not (BUILT_FROM.exists() and BUILT_FROM.read_bytes() == PINS.read_bytes()):
        shutil.rmtree(HOME, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(HOME)], check=True)
        pip = [str(HOME / "bin" / "python"), "-m", "pip", "install", "--no-deps", "--no-compile", "--quiet"]
        done = subprocess.run([*pip, "-r", str(PINS)], capture_output=True, text=True)
        if done.returncode and OUT_OF_REACH in done.stderr:
            raise OutOfReach(f"Airflow cannot be installed: {done.stderr.strip().splitlines()[-1]}")
        if done.returncode:
            raise subprocess.CalledProcessError(done.returncode, done.args, stderr=done.stderr)
        shutil.copy(PINS, BUILT_FROM)
    return HOME / "bin"
