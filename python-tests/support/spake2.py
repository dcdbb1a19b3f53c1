"""SPAKE2 over Ed25519 for the client's side, written from what the protocol says.

Independent of the code under test, and slow. The curve is that of RFC 8032, 5.1.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets

P = 2**255 - 19
ORDER = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, -1, P) % P
M = bytes.fromhex("15cfd18e385952982b6a8f8c7854963b58e34388c8e6dae891db756481a02312")
N = bytes.fromhex("f04f2e7eb734b2a8f8b472eaf9c3c632576ac64aea650b496a8a20ff00e583c3")
BASE = bytes.fromhex("58" + 31 * "66")

Point = tuple[int, int]


def decode(text: bytes) -> Point:
    """Read a point."""
    number = int.from_bytes(text, "little")
    y, sign = number & (1 << 255) - 1, number >> 255
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(square, (P + 3) // 8, P)
    if x * x % P != square:
        x = x * pow(2, (P - 1) // 4, P) % P
    assert x * x % P == square, "no point of the curve"
    return (x if x & 1 == sign else P - x, y)


def encode(point: Point) -> bytes:
    """Write a point."""
    x, y = point
    return (y | (x & 1) << 255).to_bytes(32, "little")


def add(one: Point, other: Point) -> Point:
    """Add two points."""
    (a, b), (c, d) = one, other
    product = D * a * b * c * d % P
    x = (a * d + b * c) * pow(1 + product, -1, P) % P
    y = (b * d + a * c) * pow(1 - product, -1, P) % P
    return x, y


def times(number: int, point: Point) -> Point:
    """Multiply a point."""
    result = (0, 1)
    while number:
        if number & 1:
            result = add(result, point)
        point = add(point, point)
        number >>= 1
    return result


def scalar(password: bytes) -> int:
    """The password as a number: HKDF-SHA-256 (RFC 5869) without salt, 48 bytes."""
    key = hmac.digest(bytes(32), password, "sha256")
    first = hmac.digest(key, b"SPAKE2 pw\x01", "sha256")
    second = hmac.digest(key, first + b"SPAKE2 pw\x02", "sha256")
    return int.from_bytes((first + second)[:48], "big") % ORDER


class Client:
    """Side A."""

    def __init__(self, password: bytes, client: bytes, server: bytes) -> None:
        self._password = password
        self._names = (client, server)
        self._secret = secrets.randbelow(ORDER)
        hidden = times(scalar(password), decode(M))
        self._sent = encode(add(times(self._secret, decode(BASE)), hidden))
        self.message = b"A" + self._sent

    def key(self, answer: bytes) -> bytes:
        """The key that comes of the server's answer."""
        assert answer[:1] == b"B", answer
        hidden = times(ORDER - scalar(self._password), decode(N))
        shared = times(self._secret, add(decode(answer[1:]), hidden))
        parts = (hashlib.sha256(it).digest() for it in (self._password, *self._names))
        joined = b"".join((*parts, self._sent, answer[1:], encode(shared)))
        return hashlib.sha256(joined).digest()
