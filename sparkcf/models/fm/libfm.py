"""Read and write libFM's text format (libsvm's, unsorted): lines `target feature:value feature:value …`."""

from __future__ import annotations

import gzip
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sparkcf.errors import InputError

MOST = 2**31 - 1


@dataclass(frozen=True)
class SparseRows:
    """Compressed rows with targets.

    y : float32 (n,).
    ptr : int64 (n + 1,).
    feat : int32 (nnz,).
    val : float32 (nnz,).
    """

    y: NDArray[np.float32]
    ptr: NDArray[np.int64]
    feat: NDArray[np.int32]
    val: NDArray[np.float32]


def read_libfm(path: str | Path) -> SparseRows:
    """Read a file of rows, gzipped if its name ends in .gz. Empty lines and comments after # are skipped.

    Raises InputError, with the line's number, for a malformed number or pair, or a negative or repeated feature.
    """
    targets, counts, feats, vals = [], [0], [], []
    path = Path(path)
    try:
        with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as lines:
            for number, line in enumerate(lines, 1):
                target, *pairs = line.partition("#")[0].split() or [""]
                if not target:
                    continue
                row = [_pair(text, path, number) for text in pairs]
                if len({feature for feature, _ in row}) < len(row):
                    raise InputError(f"{path}, line {number}: a feature is repeated")
                targets.append(_number(target, path, number))
                feats += [feature for feature, _ in row]
                vals += [value for _, value in row]
                counts.append(len(row))
    except (OSError, UnicodeDecodeError, EOFError) as error:
        raise InputError(f"{path} cannot be read as libFM text: {error}") from None
    ptr = np.cumsum(counts).astype(np.int64)
    return SparseRows(np.array(targets, np.float32), ptr, np.array(feats, np.int32), np.array(vals, np.float32))


def write_libfm(path: str | Path, rows: SparseRows) -> None:
    """Write rows; `read_libfm` reads the same arrays."""
    path = Path(path)
    with gzip.open(path, "wt") if path.suffix == ".gz" else path.open("w") as file:
        for place, target in enumerate(rows.y):
            part = slice(rows.ptr[place], rows.ptr[place + 1])
            file.write(" ".join(_line(float(target), rows.feat[part], rows.val[part])) + "\n")


def _line(target: float, feats: NDArray[np.int32], vals: NDArray[np.float32]) -> Iterable[str]:
    yield f"{target:.9g}"
    for feature, value in zip(feats, vals, strict=True):
        yield f"{feature}:{float(value):.9g}"


def _pair(text: str, path: Path, number: int) -> tuple[int, float]:
    feature, sign, value = text.partition(":")
    if not sign or not feature.isdecimal() or int(feature) > MOST:
        raise InputError(f"{path}, line {number}: {text[:40]!r} is not feature:value with a feature from 0 on")
    return int(feature), _number(value, path, number)


def _number(text: str, path: Path, number: int) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{path}, line {number}: {text[:40]!r} is not a finite number")
    return value
