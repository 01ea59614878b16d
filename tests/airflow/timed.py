"""Runs a command, and adds a line with its exit code and its seconds to a file."""

import json
import subprocess
import sys
import time

began = time.monotonic()
code = subprocess.run(sys.argv[2:]).returncode
with open(sys.argv[1], "a") as file:
    file.write(json.dumps({"code": code, "seconds": time.monotonic() - began}) + "\n")
sys.exit(code)
