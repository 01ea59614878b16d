"""Stands in for spark-submit: notes its arguments, and ends as `plan.json` beside it says.

The plan has for a job ("clean") or a model's job ("als.train") the exit codes of its calls, one after the other, or
pairs of what to print and an exit code; without an entry a call ends well.
"""

import json
import sys
from pathlib import Path

folder, words = Path(__file__).parent, sys.argv[1:]
with open(folder / "calls.jsonl", "a") as file:
    file.write(json.dumps(words) + "\n")
job = next(Path(word).stem for word in words if word.endswith(".py"))
model = next((word.removeprefix("model=") + "." for word in words if word.startswith("model=")), "")
plan_file = folder / "plan.json"
plan = json.loads(plan_file.read_text()) if plan_file.exists() else {}
if ends := plan.get(f"{model}{job}"):
    end = ends.pop(0)
    plan_file.write_text(json.dumps(plan))
    said, code = end if isinstance(end, list) else ("", end)
    print(said, flush=True)
    sys.exit(code)
print(json.dumps({"job": job, "status": "ok"}))
