"""The users who were forgotten: salted hashes, by which a load keeps them out, and the dense indices that they had.

Their ids are nowhere. The salt is in the table too: it makes the hashes of two lakes differ, and does not protect ids
that can be guessed from whoever reads the lake.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from sparkcf.lake.tables import LakeTables

BLANK = "[forgotten]"  # in place of a forgotten user's id within a text
# What stands between the ids of a raw line; a colon may be part of an id or a delimiter.
BETWEEN_WORDS = (r"[\s,;|\"'\[\]{}<>()=]+", r"[\s,;|\"'\[\]{}<>()=:]+")


@dataclass(frozen=True)
class Forgotten:
    """Hashes of the forgotten users.

    hashes : a frame of one column, hash.
    """

    salt: str
    hashes: DataFrame

    def hash(self, user_id: Column) -> Column:
        """The hash of an id, as in the table `forgotten`."""
        return F.sha2(F.concat(F.lit(self.salt), user_id), 256)

    def among(self, rows: DataFrame) -> DataFrame:
        """The rows (with user_id) of forgotten users."""
        return self._hashed(rows).join(F.broadcast(self.hashes), on="hash", how="left_semi").drop("hash")

    def marked(self, rows: DataFrame, name: str) -> DataFrame:
        """Add a boolean column: whether the row's user is forgotten. Rows without a user are not."""
        known = F.broadcast(self.hashes.withColumn(name, F.lit(True)))
        joined = self._hashed(rows).join(known, on="hash", how="left").drop("hash")
        return joined.withColumn(name, F.coalesce(name, F.lit(False)))

    def without(self, rows: DataFrame) -> DataFrame:
        """The rows (with user_id) of users who are not forgotten."""
        return self._hashed(rows).join(F.broadcast(self.hashes), on="hash", how="left_anti").drop("hash")

    def blanked(self, rows: DataFrame, text: str, normalized: Callable[[Column], Column]) -> DataFrame:
        """The rows, with null in place of a text one of whose words, normalized, is a forgotten user's id."""
        words = F.explode(F.array_union(*(F.split(text, between) for between in BETWEEN_WORDS)))
        named = rows.select(text).distinct().withColumn("word", words)
        named = named.withColumn("user_id", normalized(F.col("word"))).where("user_id IS NOT NULL")
        named = self.among(named).select(text).distinct().withColumn("named", F.lit(True))
        joined = rows.join(named, on=text, how="left")
        return joined.withColumn(text, F.when(F.col("named").isNull(), F.col(text))).select(*rows.columns)

    def unsealed(self, tables: LakeTables, ids: DataFrame) -> bool:
        """Whether the job that forgot one of the users (user_id) did not reach its end."""
        open_rows = tables.read("forgotten").where("sealed_at IS NULL").select("hash")
        return not self._hashed(ids).join(open_rows, on="hash", how="left_semi").isEmpty()

    def ids_among(self, users: set[str]) -> set[str]:
        """Those of some ids whose users are forgotten."""
        by_hash = {hashlib.sha256(f"{self.salt}{user}".encode()).hexdigest(): user for user in users}
        found = self.hashes.where(F.col("hash").isin(*by_hash)).collect() if by_hash else []
        return {by_hash[row["hash"]] for row in found}

    def _hashed(self, rows: DataFrame) -> DataFrame:
        return rows.withColumn("hash", self.hash(F.col("user_id")))


def forgotten_users(tables: LakeTables) -> Forgotten | None:
    """The forgotten users of the lake; None if there are none."""
    if not tables.exists("forgotten"):
        return None
    rows = tables.read("forgotten")
    first = rows.select("salt").first()
    return Forgotten(first["salt"], rows.select("hash")) if first else None


def new_salt() -> str:
    return secrets.token_hex(16)
