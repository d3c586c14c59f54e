"""A shuffled order without a table: a keyed permutation that can be asked for any place in it.

A Feistel network (Luby and Rackoff, "How to construct pseudorandom permutations", 1988) permutes the numbers below a
power of four; walking a cycle until it comes back below ``n`` (Black and Rogaway, "Ciphers with arbitrary finite
domains", 2002) makes that a permutation of the numbers below any ``n``.
"""

import hashlib
from collections.abc import Sequence

import numpy as np

ROUNDS = 6


def draw_keys(seed: int, epoch: int) -> np.ndarray:
    """`ROUNDS` keys and one number to spare, (ROUNDS + 1,) uint64, from BLAKE2b: the same on every machine."""
    digest = hashlib.blake2b(f"{seed}/{epoch}".encode(), digest_size=8 * (ROUNDS + 1)).digest()
    return np.frombuffer(digest, dtype="<u8").astype(np.uint64)


def permute(places: np.ndarray, n: int, keys: np.ndarray) -> np.ndarray:
    """What stands at ``places`` (int64, each in 0..n-1) of the order of 0..n-1 that ``keys`` decide; O(1) a place."""
    half = np.uint64(max(1, -(-(n - 1).bit_length() // 2)))
    found = places.astype(np.uint64)
    outside = np.arange(len(found))
    while outside.size:
        found[outside] = _feistel(found[outside], half, keys)
        outside = outside[found[outside] >= n]
    return found.astype(np.int64)


def draw_order(n: int, seed: int, places: Sequence[int]) -> list[int]:
    """Which of ``n`` things stands at each of ``places`` when every epoch takes each once, in an order of its own."""
    epochs, within = np.divmod(np.asarray(places, dtype=np.int64), n)
    found = np.empty(len(places), dtype=np.int64)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        found[here] = permute(within[here], n, draw_keys(seed, int(epoch)))
    return found.tolist()


def _feistel(values: np.ndarray, half: np.uint64, keys: np.ndarray) -> np.ndarray:
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = values >> half, values & mask
    for key in keys[:ROUNDS]:
        left, right = right, left ^ (_scramble(right ^ key) & mask)
    return (left << half) | right


def _scramble(values: np.ndarray) -> np.ndarray:
    """A hash of 64 bits: the finishing step of SplitMix64 (Steele, Lea and Flood, 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
