"""Keys with which Spark's hash partitioning becomes partitioning by number."""

from __future__ import annotations


def partition_keys(partitions: int) -> list[int]:
    """One integer per partition: Spark's hash partitioner sends keys[p] to partition p."""
    keys: dict[int, int] = {}
    candidate = 0
    while len(keys) < partitions:
        keys.setdefault(murmur3(candidate) % partitions, candidate)
        candidate += 1
    return [keys[p] for p in range(partitions)]


def murmur3(value: int, seed: int = 42) -> int:
    """Spark's `hash` of a 32-bit integer: Murmur3_x86_32 of its four bytes, signed."""
    mask = 0xFFFFFFFF
    k = value * 0xCC9E2D51 & mask
    k = (k << 15 | k >> 17) * 0x1B873593 & mask
    h = seed ^ k
    h = ((h << 13 | h >> 19) & mask) * 5 + 0xE6546B64 & mask
    h ^= 4
    h = (h ^ h >> 16) * 0x85EBCA6B & mask
    h = (h ^ h >> 13) * 0xC2B2AE35 & mask
    h ^= h >> 16
    return h - (1 << 32) if h >> 31 else h
