"""Who signed a limits file: RSASSA-PKCS1-v1_5 with SHA-256 (RFC 8017), verified with nothing but `pow` and hashlib.

The `.sig` file beside a limits file names author and approver (two people), the date and the key; all of it is signed together
with the file's SHA-256. The expected block is built and compared whole, never taken apart: no padding can hide anything.
Not responsible for making keys or signatures: that is done outside of this package, by a program that this one does not trust.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

SHIPPED_KEY = Path(__file__).with_name("limits.pub.json")
FIELDS = ("sha256", "author", "approver", "date", "key")
BITS_MIN = 3072
SHA256_INFO = bytes.fromhex("3031300d060960864801650304020105000420")  # RFC 8017, 9.2, note 1


def message(block: dict[str, Any]) -> bytes:
    """What is signed: the fields, in this order, one a line."""
    return "".join(f"{name}: {block[name]}\n" for name in FIELDS).encode("utf-8")


def key_id(n: int, e: int) -> str:
    """Short name of a public key."""
    return hashlib.sha256(f"{n:x}:{e:x}".encode()).hexdigest()[:16]


def load_key(path: Path) -> tuple[int, int]:
    """(modulus, exponent) of a public key file. Raises ValueError, OSError."""
    try:
        key = json.loads(path.read_text(encoding="ascii"))
        n, e = int(key["n"], 16), int(key["e"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not a public key: {error}") from None
    if n.bit_length() < BITS_MIN or n % 2 == 0 or e != 65537:
        raise ValueError(f"{path}: {n.bit_length()} bits, exponent {e}: at least {BITS_MIN} bits and 65537 are needed")
    return n, e


def verifier(keys: Iterable[Path] = (SHIPPED_KEY,)) -> Callable[[str, str], bool]:
    """A check for `matrix.load`: True, or ValueError with the reason. Raises ValueError, OSError: a key cannot be used."""
    trusted = {key_id(n, e): (n, e) for n, e in map(load_key, keys)}

    def verify(sha256: str, signature: str) -> bool:
        try:
            block = json.loads(signature)
            told, value = {name: str(block[name]) for name in FIELDS}, int(block["signature"], 16)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"not a signature block: {error}") from None
        if told["sha256"] != sha256:
            raise ValueError("it is of another file, or the file was changed since")
        if any(not told[name].strip() or "\n" in told[name] for name in FIELDS):
            raise ValueError("author, approver and date are all needed")
        if told["author"].strip().casefold() == told["approver"].strip().casefold():
            raise ValueError("author and approver are the same person")
        if told["key"] not in trusted:
            raise ValueError(f"key {told['key'][:16]} is not trusted; trusted: {', '.join(trusted) or 'none'}")
        n, e = trusted[told["key"]]
        size = (n.bit_length() + 7) // 8
        digest = SHA256_INFO + hashlib.sha256(message(told)).digest()
        expected = b"\x00\x01" + b"\xff" * (size - len(digest) - 3) + b"\x00" + digest
        if not 0 < value < n or pow(value, e, n).to_bytes(size, "big") != expected:
            raise ValueError("it does not belong to this key")
        return True

    return verify
