"""Lists in Redis: one hash a version, and one key that names the version that readers use.

PREFIX:MODEL:current              name of the version
PREFIX:MODEL:VERSION              hash: user id -> JSON array of the list
PREFIX:MODEL:VERSION:titles       hash: item id -> title
PREFIX:MODEL:VERSION:manifest     JSON: run, day, counts
PREFIX:MODEL:versions             list of the versions, oldest first
PREFIX:MODEL:writing              lock of an export that is running
PREFIX:MODEL:unfinished           set of the versions that an export has begun
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from sparkcf.errors import ConfigError, ConflictError, LakeError, first_line
from sparkcf.export.lists import Items, Lists, as_items
from sparkcf.redact import redacted

PER_COMMAND = 200  # fields of an HSET: Redis answers other clients between two commands
PER_ROUND = 50  # commands that are sent before their answers are read
LOCK_S = 600  # an export that sends nothing for so long is dead


class RedisLists:
    """The lists of one model in a Redis database.

    Parameters
    ----------
    address : redis://, rediss:// or unix://, with user, password and database where they are needed.
    prefix : first part of every key.
    """

    titled = False

    def __init__(self, address: str, prefix: str, model: str) -> None:
        try:
            import redis
        except ImportError:
            raise ConfigError("--to redis needs the package redis: pip install 'sparkcf[redis]'") from None
        self._error = redis.RedisError
        self._base = f"{prefix}:{model}"
        self._address = redacted(address)
        try:
            self._client: Any = redis.Redis.from_url(address, decode_responses=True, socket_timeout=60)
        except ValueError as error:
            raise ConfigError(f"--at {self._address}: {error}") from None
        self.version = ""

    @contextmanager
    def writing(self, run_id: str) -> Iterator[None]:
        """Hold the lock, give the new version its name, and remove what a dead export left.

        Raises
        ------
        ConfigError
            Redis cannot be reached.
        ConflictError
            Another export is writing.
        LakeError
            Redis answers with an error, such as a full memory.
        """
        mine = uuid.uuid4().hex
        try:
            if not self._client.set(self._key("writing"), mine, nx=True, ex=LOCK_S):
                raise ConflictError(
                    f"another export is writing to {self._base} in {self._address}: wait for its end, or if it was "
                    f"killed, {LOCK_S // 60} minutes"
                )
        except self._error as error:
            raise ConfigError(f"--at {self._address}: Redis cannot be used: {first_line(error)}") from None
        try:
            self._remove(self._client.smembers(self._key("unfinished")))
            number = self._client.incr(self._key("number"))
            self.version = f"{number:06}-{run_id}"
            self._client.sadd(self._key("unfinished"), self.version)
            yield
        except self._error as error:
            raise LakeError(f"{self._address}: {first_line(error)}; readers keep the version they have") from None
        finally:
            self._release(mine)

    def add(self, lists: Lists) -> None:
        self._fill(self._key(self.version), lists.users, lists.as_json())

    def close(self, titles: pa.Table) -> None:
        self._fill(self._key(self.version, "titles"), titles["item_id"], titles["title"])

    def read_back(self, users: list[str]) -> tuple[int, int, dict[str, Items]]:
        """The number of users, no number of rows (-1: counting them would move all lists), and some users' lists."""
        count = self._client.hlen(self._key(self.version))
        texts = self._client.hmget(self._key(self.version), users) if users else []
        return count, -1, {u: as_items(text) for u, text in zip(users, texts, strict=True) if text is not None}

    def publish(self, manifest: dict[str, Any]) -> str:
        """Let readers use the new version, in one transaction. Returns its name."""
        with self._client.pipeline(transaction=True) as pipe:
            pipe.set(self._key(self.version, "manifest"), json.dumps({"version": self.version, **manifest}))
            pipe.rpush(self._key("versions"), self.version)
            pipe.srem(self._key("unfinished"), self.version)
            pipe.set(self._key("current"), self.version)
            pipe.execute()
        return self.version

    def remove_old(self, keep: int) -> list[str]:
        """Remove all but the newest `keep` versions; returns their names."""
        old: list[str] = self._client.lrange(self._key("versions"), 0, -keep - 1)
        self._remove(old)
        self._client.ltrim(self._key("versions"), -keep, -1)
        return old

    def _remove(self, versions: Any) -> None:
        for version in versions:
            self._client.unlink(*(self._key(version, *part) for part in ((), ("titles",), ("manifest",))))
            self._client.srem(self._key("unfinished"), version)

    def _fill(self, key: str, names: pa.Array, values: pa.Array) -> None:
        flat: list[str] = [""] * (2 * len(names))
        flat[::2], flat[1::2] = names.to_pylist(), values.to_pylist()
        step = 2 * PER_COMMAND
        for start in range(0, len(flat), step * PER_ROUND):
            with self._client.pipeline(transaction=False) as pipe:
                for at in range(start, min(start + step * PER_ROUND, len(flat)), step):
                    pipe.hset(key, items=flat[at : at + step])
                pipe.expire(self._key("writing"), LOCK_S)
                pipe.execute()

    def _release(self, mine: str) -> None:
        try:
            if self._client.get(self._key("writing")) == mine:
                self._client.delete(self._key("writing"))
        except self._error:  # the connection is gone: the lock ends by itself
            return

    def _key(self, *parts: str) -> str:
        return ":".join((self._base, *parts))
