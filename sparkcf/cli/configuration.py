"""The configuration that `sparkcf init` writes."""

from __future__ import annotations

import json
from pathlib import Path

from sparkcf.cli.guess import Guess


def as_yaml(guess: Guess, path: Path, output: Path) -> str:
    """A commented YAML file for nights on the file that was looked at. JSON's texts are YAML's too."""
    columns = {"user_id": None, "item_id": None, "value": None, "ts": None, "event": None} | guess.columns
    lines = [
        "# A night on this file:",
        f"#     make nightly CONFIG={output} ARGS=ds=YYYY-MM-DD",
        "# ds is the night's logical date: events after its end are rejected. All keys: docs/configuration.md.",
        "lake:",
        f"  root: {json.dumps(f'./{output.stem}-lake', ensure_ascii=False)}",
        "input:",
        "  # A pattern may name many files; {ds} in it is replaced by the logical date.",
        f"  path: {json.dumps(str(path), ensure_ascii=False)}",
        f"  format: {guess.form}",
    ]
    if guess.form == "csv":
        lines.append(f"  delimiter: {json.dumps(guess.delimiter)}")
        if not guess.header:
            lines += ["  header: false", f"  names: {json.dumps(list(guess.names), ensure_ascii=False)}"]
    lines.append("  columns:")
    lines += [f"    {ours}: {json.dumps(theirs, ensure_ascii=False)}" for ours, theirs in columns.items()]
    if guess.ts_format:
        lines.append(f"  ts_formats: [{json.dumps(guess.ts_format)}]")
    lines += ["model: als  # see `sparkcf models`", ""]
    return "\n".join(lines)
