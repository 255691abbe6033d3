"""Signatures of beam libraries: Ed25519 keys, where they lie, and whom we trust.

A private key lies in `STATE/keys/beam-library.key` (PKCS8 PEM, readable by its owner alone) and is made by the first
commissioning. Trusted public keys are the shipped ones (`controller/beam/libraries/trusted_keys.json`) and every
`STATE/keys/*.pub`.

Not responsible for what is signed (`controller.beam.library`), nor for who may commission (roles).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from drivers.hal.errors import ConfigError, DataError

if TYPE_CHECKING:  # the import costs 25 ms; a library is verified long after the command line has started
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

PRIVATE_NAME = "beam-library.key"


def key_id(public: bytes) -> str:
    """Short name of a raw public key of 32 bytes: the first 16 hexadecimal digits of its SHA-256."""
    return hashlib.sha256(public).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A private key and its raw public half."""

    private: Ed25519PrivateKey
    public: bytes

    @property
    def id(self) -> str:
        """Name of the key, as libraries carry it."""
        return key_id(self.public)

    def sign(self, message: bytes) -> str:
        """Signature of a message, base64."""
        return base64.b64encode(self.private.sign(message)).decode("ascii")


def new_key() -> SigningKey:
    """Make a key that is stored nowhere."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    private = Ed25519PrivateKey.generate()
    return SigningKey(private, private.public_key().public_bytes_raw())


def load_or_create_key(keys_dir: Path) -> SigningKey:
    """The signing key of a state directory's `keys`, made (with its `.pub`) when there is none.

    Raises:
        ConfigError: the key file is there and is not an Ed25519 private key.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
        load_pem_private_key,
    )

    path = keys_dir / PRIVATE_NAME
    if path.exists():
        try:
            private = load_pem_private_key(path.read_bytes(), password=None)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{path} is not a private key: {error}", code=1301, hint="restore it or remove it") from None
        if not isinstance(private, Ed25519PrivateKey):
            raise ConfigError(f"{path} is not an Ed25519 key", code=1301, hint="restore it or remove it")
        return SigningKey(private, private.public_key().public_bytes_raw())
    key = new_key()
    keys_dir.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(key.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (keys_dir / f"{key.id}.pub").write_text(key.public.hex() + "\n", encoding="ascii")
    return key


def shipped_keys() -> dict[str, bytes]:
    """Public keys of the libraries that ship, by key id."""
    file = resources.files("controller.beam") / "libraries" / "trusted_keys.json"
    raw: dict[str, str] = json.loads(file.read_text(encoding="utf-8"))
    return {name: bytes.fromhex(value) for name, value in raw.items()}


def trusted_keys(keys_dir: Path | None = None) -> dict[str, bytes]:
    """The shipped public keys and, when a state directory's `keys` is given, every `*.pub` in it.

    Raises:
        ConfigError: a `.pub` file is not 32 bytes in hexadecimal.
    """
    keys = shipped_keys()
    for path in sorted(keys_dir.glob("*.pub")) if keys_dir is not None else ():
        try:
            public = bytes.fromhex(path.read_text(encoding="ascii").strip())
        except (ValueError, UnicodeDecodeError):
            public = b""
        if len(public) != 32:
            raise ConfigError(f"{path} is not a public key of 32 bytes in hexadecimal", code=1302, hint="remove it")
        keys[key_id(public)] = public
    return keys


def verify(message: bytes, signature: str, signer: str, trusted: Mapping[str, bytes], where: str) -> None:
    """Raise DataError unless `signature` (base64) is that of a trusted key named `signer` over `message`."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    public = trusted.get(signer)
    if public is None or key_id(public) != signer:
        raise DataError(
            f"{where} is signed with key {signer!r}, which is not trusted here",
            code=5301,
            hint="put its public key into STATE/keys, or commission this facility again",
        )
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(base64.b64decode(signature, validate=True), message)
    except (InvalidSignature, binascii.Error, ValueError):
        raise DataError(
            f"{where}: the signature of key {signer} does not fit its content", code=5302, hint="restore the released file"
        ) from None
