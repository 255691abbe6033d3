"""Signing limits files of the interlock system and their overlays; outside `interlocks`, which only verifies.

Two people stand for a file: who wrote it and who approved it. A key file that does not exist is made (3072 bit RSA, readable by
its owner alone). Not responsible for what a file says (`interlocks.matrix` refuses bad ones) nor for keeping keys safe.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from drivers.hal.errors import CommandRejected, ConfigError
from interlocks.signature import key_id, message

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

KEY_BITS = 3072
NOT_A_KEY, TWO_PEOPLE = 6421, 6422


def sign_limits(
    files: Sequence[Path], key_file: Path | None, author: str, approver: str, public: Path | None, date: str = ""
) -> list[Path]:
    """Sign files, each into a `.sig` beside it; returns what was written, the public key file first if one was asked for.

    Args:
        files: limits files or overlays.
        key_file: private key (PEM); made when it does not exist. None: a key for this call alone, kept nowhere.
        author, approver: two people.
        public: where the public key goes, for `--trust`.
        date: of the signature, ISO 8601; today when empty.

    Raises:
        CommandRejected: author and approver are not two people (6422).
        ConfigError: the key file is not an RSA private key of 3072 bits or more (6421).
        OSError: a file cannot be read or written.
    """
    if not author.strip() or not approver.strip() or author.strip().casefold() == approver.strip().casefold():
        raise CommandRejected(
            "author and approver must be two people", code=TWO_PEOPLE, hint="name who wrote the file and who approved it"
        )
    key = _key(key_file)
    numbers = key.public_key().public_numbers()
    written = []
    if public is not None:
        public.write_text(json.dumps({"n": f"{numbers.n:x}", "e": numbers.e}, indent=1) + "\n", encoding="ascii")
        written.append(public)
    for file in files:
        block = {
            "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
            "author": author.strip(),
            "approver": approver.strip(),
            "date": date or datetime.datetime.now(datetime.UTC).date().isoformat(),
            "key": key_id(numbers.n, numbers.e),
        }
        block["signature"] = _sign(key, message(block))
        beside = file.with_suffix(file.suffix + ".sig")
        beside.write_text(json.dumps(block, indent=1) + "\n", encoding="ascii")
        written.append(beside)
    return written


def _sign(key: RSAPrivateKey, content: bytes) -> str:
    from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
    from cryptography.hazmat.primitives.hashes import SHA256

    return key.sign(content, PKCS1v15(), SHA256()).hex()


def _key(file: Path | None) -> RSAPrivateKey:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
        load_pem_private_key,
    )

    if file is not None and file.exists():
        try:
            found = load_pem_private_key(file.read_bytes(), password=None)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{file}: not a private key: {error}", code=NOT_A_KEY) from None
        if not isinstance(found, RSAPrivateKey) or found.key_size < KEY_BITS:
            raise ConfigError(f"{file}: not an RSA key of {KEY_BITS} bits or more", code=NOT_A_KEY)
        return found
    key = generate_private_key(public_exponent=65537, key_size=KEY_BITS)
    if file is not None:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as out:
            out.write(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return key
