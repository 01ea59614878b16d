"""Counter-based random numbers: a row's draws depend only on (seed, row), not on the block that has the row."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from sparkcf.kernels.jit import kernel


def normal_rows(seed: int, stream: int, rows: NDArray[np.int64], width: int, sd: float) -> NDArray[np.float32]:
    """Normal draws with mean 0, float32 (len(rows), width), a function of (seed, stream, row, column).

    `stream` separates draws for different purposes. Box-Muller over splitmix64 counters.
    """
    out = np.empty((len(rows), width), np.float32)
    _fill_normal(_key(seed, stream), rows.astype(np.int64), sd, out)
    return out


def uniform_rows(seed: int, stream: int, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Uniform draws from (0, 1), float64 (len(rows),), a function of (seed, stream, row)."""
    out = np.empty(len(rows))
    _fill_uniform(_key(seed, stream), rows.astype(np.int64), out)
    return out


def draw_keys(seed: int, stream: int, rows: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Start values of rows' own sequences of splitmix64, uint64 (len(rows),), a function of (seed, stream, row)."""
    out = np.empty(len(rows), np.uint64)
    _fill_keys(_key(seed, stream), rows.astype(np.int64), out)
    return out


def _key(seed: int, stream: int) -> np.uint64:
    return np.uint64((seed * 0x9E3779B97F4A7C15 + stream * 0xD1B54A32D192ED03 + 0x632BE59BD9B4E019) % 2**64)


@kernel()
def _splitmix64(state):
    z = state + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@kernel()
def _fill_keys(key, rows, out):
    for place in range(rows.size):
        out[place] = _splitmix64(key ^ _splitmix64(np.uint64(rows[place])))


@kernel()
def _fill_normal(key, rows, sd, out):
    for place in range(rows.size):
        row_key = _splitmix64(key ^ _splitmix64(np.uint64(rows[place])))
        for column in range(out.shape[1]):
            first = _splitmix64(row_key + np.uint64(2 * column))
            second = _splitmix64(row_key + np.uint64(2 * column + 1))
            u = (np.float64(first >> np.uint64(11)) + 0.5) * (1.0 / 9007199254740992.0)  # in (0, 1)
            v = np.float64(second >> np.uint64(11)) * (1.0 / 9007199254740992.0)
            out[place, column] = sd * math.sqrt(-2.0 * math.log(u)) * math.cos(2.0 * math.pi * v)


@kernel()
def _fill_uniform(key, rows, out):
    for place in range(rows.size):
        drawn = _splitmix64(_splitmix64(key ^ _splitmix64(np.uint64(rows[place]))))
        out[place] = (np.float64(drawn >> np.uint64(11)) + 0.5) * (1.0 / 9007199254740992.0)
