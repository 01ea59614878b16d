"""A folder on a disk or an object store, for files that are not tables."""

from __future__ import annotations

import datetime as dt
import json
import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode, urlsplit

from pyarrow import fs

from sparkcf.errors import ConfigError, first_line
from sparkcf.lake.roots import local_folder

SCHEMES = {"s3": "s3", "s3a": "s3", "s3n": "s3", "gs": "gs", "hdfs": "hdfs"}  # Hadoop's schemes: Arrow's
LONGEST_JSON = 16 << 20


class Folder:
    """Reads and writes files by their names relative to an address. Failures of the file system are OSErrors.

    Parameters
    ----------
    address : a path (relative paths and `~` are resolved), or an address that starts with file, s3, gs or hdfs.

    Raises
    ------
    ConfigError
        Arrow cannot write to the address.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        folder = local_folder(address)
        if folder is not None:
            self._files, self._path = fs.LocalFileSystem(), folder
            return
        scheme, _, rest = address.partition(":")
        try:
            if scheme not in SCHEMES:
                raise ValueError(f"no way to write to {scheme}: addresses")
            address = f"{SCHEMES[scheme]}:{rest}"
            self._files, self._path = fs.FileSystem.from_uri(
                at_endpoint(address, os.environ) if SCHEMES[scheme] == "s3" else address
            )
        except (OSError, ValueError) as error:
            first, cure = first_line(error), "give a folder, or an address that starts with s3, gs or hdfs"
            raise ConfigError(f"{address}: {first}; {cure}") from None

    def read(self, name: str) -> bytes:
        with self._files.open_input_stream(f"{self._path}/{name}") as stream:
            return bytes(stream.read())

    def read_json(self, name: str) -> Any:
        """Read a JSON file. Raises ValueError if it is not JSON or longer than LONGEST_JSON."""
        if self.size(name) > LONGEST_JSON:
            raise ValueError(f"{name} is longer than {LONGEST_JSON} bytes")
        return json.loads(self.read(name))

    def write(self, name: str, data: bytes) -> None:
        """Write a file atomically: under a temporary name, then renamed."""
        path = f"{self._path}/{name}"
        self._files.create_dir(path.rpartition("/")[0], recursive=True)
        with self._files.open_output_stream(f"{path}.part") as stream:
            stream.write(data)
        self._files.move(f"{path}.part", path)

    def open(self, name: str) -> Any:
        """Open a file for random access; the caller closes it."""
        return self._files.open_input_file(f"{self._path}/{name}")

    def size(self, name: str) -> int:
        """Size of a file in bytes; 0 if it does not exist."""
        return self._files.get_file_info(f"{self._path}/{name}").size or 0

    def total(self, *suffixes: str) -> int:
        """Bytes of all files below the folder with one of the suffixes, those of Delta's logs left out."""
        return sum(i.size for i in self._below() if i.path.endswith(suffixes) and "/_delta_log/" not in i.path)

    def files(self) -> list[str]:
        """Names of all files below the folder, sorted."""
        return sorted(info.path[len(self._path) + 1 :] for info in self._below())

    def _below(self) -> list[fs.FileInfo]:
        selector = fs.FileSelector(self._path, allow_not_found=True, recursive=True)
        return [info for info in self._files.get_file_info(selector) if info.type == fs.FileType.File]

    def changed_at(self, name: str) -> dt.datetime | None:
        """When the newest file below an entry was written; None if it has no file."""
        path = f"{self._path}/{name}"
        info = self._files.get_file_info(path)
        below = fs.FileSelector(path, allow_not_found=True, recursive=True)
        infos = [info] if info.type == fs.FileType.File else self._files.get_file_info(below)
        return max((info.mtime for info in infos if info.type == fs.FileType.File), default=None)

    def names(self) -> list[str]:
        """Names of the folder's entries, sorted; empty if the folder does not exist."""
        selector = fs.FileSelector(self._path, allow_not_found=True)
        return sorted(info.base_name for info in self._files.get_file_info(selector))

    def copy_to(self, name: str, path: str) -> None:
        """Copy a file to this machine's disk."""
        fs.copy_files(f"{self._path}/{name}", path, self._files, fs.LocalFileSystem())

    def delete(self, name: str = "") -> None:
        """Remove a file or a folder, or everything without a name; a missing one is ignored."""
        path = f"{self._path}/{name}".rstrip("/")
        kind = self._files.get_file_info(path).type
        if kind == fs.FileType.Directory:
            self._files.delete_dir(path)
        elif kind == fs.FileType.File:
            self._files.delete_file(path)


def at_endpoint(address: str, environment: Mapping[str, str]) -> str:
    """An S3 address at the server that AWS_ENDPOINT_URL names, as delta-rs reads it; Arrow itself does not."""
    endpoint = environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL")
    if not endpoint:
        return address
    server = urlsplit(endpoint)
    region = environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION") or "us-east-1"
    query = urlencode({"scheme": server.scheme, "endpoint_override": server.netloc, "region": region})
    return f"{address}{'&' if '?' in address else '?'}{query}"
