"""Removes forgotten users from all tables, and notes from which versions on no table names them.

Ids are joined and never stand in a predicate, which the tables' logs would keep.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial

from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import StructType

from sparkcf.lake.at_once import at_once
from sparkcf.lake.forgotten import BLANK
from sparkcf.lake.frames import frame_of
from sparkcf.lake.schemas import PER_USER, TABLES
from sparkcf.lake.tables import LakeTables, retry_conflicts
from sparkcf.lake.upkeep import seal

PACKED = ("user_rows", "item_rows", "example_rows")  # they are built anew when they are needed
SEALED = (*PER_USER, *PACKED, "feature_factors", "quarantine", "runs")  # tables that may name users
QUOTED = re.compile(r"'((?:[^'\\]|\\.)*)'|\"((?:[^\"\\]|\\.)*)\"", re.S)  # how messages name ids, by repr
ESCAPED = re.compile(r"\\(?:x([0-9a-f]{2})|u([0-9a-f]{4})|U([0-9a-f]{8})|(.))", re.S)
CONTROLS = {"n": "\n", "r": "\r", "t": "\t"}


def remove_rows(tables: LakeTables, name: str, ids: DataFrame) -> int:
    """Delete the users' rows (user_id) from a table."""
    same = "t.user_id = s.user_id"
    return retry_conflicts(
        f"remove users from {name}", lambda: tables.merge(name, ids, same, "WHEN MATCHED THEN DELETE")["deleted"]
    )


def remove_parameters(tables: LakeTables, indices: DataFrame) -> int:
    """Delete the parameters that factorization machines have of the users (user_idx), in fields of user ids."""
    if not tables.exists("feature_factors"):
        return 0
    fields, present = [], tables.read("feature_factors").select("run_id").distinct()
    runs = tables.read("runs").where("model = 'fm'").join(present, on="run_id", how="left_semi")
    for row in runs.select("run_id", "config").collect():
        listed = json.loads(row["config"]).get("fm", {}).get("fields", [])
        fields += [{"run_id": row["run_id"], "field": f["name"]} for f in listed if f.get("of") == "user"]
    if not fields:
        return 0
    schema = StructType([TABLES["feature_factors"].schema[name] for name in ("run_id", "field")])
    source = frame_of(tables.spark, fields, schema).crossJoin(indices.where("user_idx IS NOT NULL").distinct())
    same = "t.run_id = s.run_id AND t.field = s.field AND t.feature_idx = s.user_idx"
    return retry_conflicts(
        "remove users from feature_factors",
        lambda: tables.merge("feature_factors", source, same, "WHEN MATCHED THEN DELETE")["deleted"],
    )


def empty_packed_rows(tables: LakeTables) -> None:
    for name in PACKED:
        if tables.exists(name):
            retry_conflicts(f"empty {name}", tables.table(name).delete)


def blank_runs(tables: LakeTables, gone: Callable[[set[str]], set[str]]) -> int:
    """Take users out of the settings and reasons of runs; returns the number of runs that named one.

    Parameters
    ----------
    gone : gives those of some ids whose users are forgotten.
    """
    rows = tables.read("runs").select("run_id", "config", "reason").collect()
    configs = {row["run_id"]: json.loads(row["config"]) for row in rows}
    named = {user for config in configs.values() for user in config.get("topk", {}).get("users", [])}
    named |= {text for row in rows for found in QUOTED.finditer(row["reason"] or "") for text in _meant(found)}
    users = gone(named - {BLANK}) if named else set()
    changed = []
    for row in rows if users else ():
        config = configs[row["run_id"]]
        listed = config.get("topk", {}).get("users", [])
        if users.intersection(listed):
            config["topk"]["users"] = [BLANK if user in users else user for user in listed]
        reason = row["reason"] and without_named(row["reason"], users)
        if reason != row["reason"] or users.intersection(listed):
            changed.append({"run_id": row["run_id"], "config": json.dumps(config, sort_keys=True), "reason": reason})
    if changed:
        schema = StructType([TABLES["runs"].schema[name] for name in ("run_id", "config", "reason")])
        source = frame_of(tables.spark, changed, schema)
        clause = "WHEN MATCHED THEN UPDATE SET config = s.config, reason = s.reason"
        retry_conflicts("blank runs", lambda: tables.merge("runs", source, "t.run_id = s.run_id", clause))
    return len(changed)


def without_named(reason: str, users: set[str]) -> str:
    """A message without the ids of some users that it names in quotes."""
    return QUOTED.sub(lambda found: found[0] if users.isdisjoint(_meant(found)) else BLANK, reason)


def _meant(quoted: re.Match[str]) -> set[str]:
    """What a quoted text may stand for: itself, and what `repr` wrote so."""
    text = quoted[1] or quoted[2] or ""
    return {text, ESCAPED.sub(lambda m: CONTROLS.get(m[4], m[4]) or chr(int(m[1] or m[2] or m[3], 16)), text)}


def seal_tables(tables: LakeTables) -> dict[str, int]:
    """Seal every table that may name users; returns the versions from which on none names a forgotten one."""
    names = [name for name in SEALED if tables.exists(name)]
    return dict(zip(names, at_once(*(partial(seal, tables, name) for name in names)), strict=True))


def note_sealed(tables: LakeTables, versions: dict[str, int], hashes: DataFrame | None = None) -> None:
    """Note the versions for some forgotten users (hash), or for all; files before these are to be removed."""
    written = F.from_json(F.lit(json.dumps(versions)), "map<string,bigint>")
    values = {"sealed": written, "sealed_at": F.current_timestamp(), "purged_at": F.lit(None)}
    if hashes is None:
        tables.update("forgotten", "true", values)
        return
    source = hashes.select("hash", written.alias("sealed"), F.current_timestamp().alias("sealed_at"))
    clause = "WHEN MATCHED THEN UPDATE SET sealed = s.sealed, sealed_at = s.sealed_at, purged_at = NULL"
    retry_conflicts("note the versions", lambda: tables.merge("forgotten", source, "t.hash = s.hash", clause))
