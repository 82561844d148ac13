"""A pseudorandom permutation of any range, in constant memory."""

from __future__ import annotations

import numpy as np


def permute(index: np.ndarray, count: int, key: tuple[int, int]) -> np.ndarray:
    """Returns where a pseudorandom permutation of range(count) sends each index.

    A Feistel network over the next even number of bits; values that fall outside the range are
    encrypted again until they fall inside.

    Source: Black and Rogaway 2002, Ciphers with Arbitrary Finite Domains, section 3 (cycle walking)
    over a Feistel network.
    """
    half = max(1, -(-max(1, int(count - 1).bit_length()) // 2))
    mask = np.uint64((1 << half) - 1)

    def network(value: np.ndarray) -> np.ndarray:
        left, right = value >> np.uint64(half), value & mask
        for turn in range(6):
            left, right = right, left ^ (splitmix64(right, key[0], (key[1] << 3) + turn) & mask)
        return (left << np.uint64(half)) | right

    value = network(index.astype(np.uint64))
    while (outside := value >= count).any():
        value = np.where(outside, network(value), value)
    return value.astype(np.int64)


def splitmix64(value: np.ndarray, seed: int, salt: int) -> np.ndarray:
    """Returns a 64-bit hash of value, seed and salt: the finaliser of SplitMix64 (Steele et al.
    2014), applied to each in turn."""
    with np.errstate(over="ignore"):
        for word in (seed, salt):
            value = value + np.uint64(word % 2**64) + np.uint64(0x9E3779B97F4A7C15)
            value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            value = value ^ (value >> np.uint64(31))
    return value
