"""Random draws by key: no state to keep, any one can be had without those before it, the same on every machine."""

from __future__ import annotations

from hashlib import blake2b

_ROUNDS = 4
_FEWEST_BITS = 3  # of half a number: a network of fewer makes only some of the orders of a few things


def uniform(*key: int | str) -> float:
    """A number in [0, 1) that depends on the key alone."""
    return (int.from_bytes(blake2b(repr(key).encode(), digest_size=8).digest(), "big") >> 11) * 2.0**-53


def shuffled(place: int, size: int, *key: int | str) -> int:
    """Who stands at a place when 0 to size - 1 are shuffled, without shuffling the others.

    A Feistel network permutes the numbers of an even number of bits; one that is `size` or above goes through it again.

    Source: Black and Rogaway, Ciphers with Arbitrary Finite Domains, CT-RSA 2002.
    """
    half = max(_FEWEST_BITS, (max(size - 1, 1).bit_length() + 1) // 2)
    mask, bytes_of_half = (1 << half) - 1, (half + 7) // 8
    keyed = [blake2b(repr((key, number)).encode(), digest_size=8) for number in range(_ROUNDS)]
    value = place
    while True:
        left, right = value >> half, value & mask
        for function in keyed:
            mixed = function.copy()
            mixed.update(right.to_bytes(bytes_of_half, "big"))
            left, right = right, left ^ (int.from_bytes(mixed.digest(), "big") & mask)
        value = left << half | right
        if value < size:
            return value
