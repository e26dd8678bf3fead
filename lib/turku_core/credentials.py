"""Secrets and SSH keys: making, parsing, hashing.

A secret is 256 random bits, so a plain SHA-256 of it is as hard to turn round as the secret is
to guess, and checking one costs microseconds. A slow password hash would protect nothing more and
let any caller burn the API's processors.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import secrets
import struct
from dataclasses import dataclass, field

SECRET_BYTES = 32

_KEY_TYPES = frozenset(
    {
        "ssh-ed25519",
        "ssh-rsa",
        "ecdsa-sha2-nistp256",
        "ecdsa-sha2-nistp384",
        "ecdsa-sha2-nistp521",
        "sk-ssh-ed25519@openssh.com",
        "sk-ecdsa-sha2-nistp256@openssh.com",
    }
)
"""The public key algorithms that OpenSSH 9 accepts for users and hosts (``ssh -Q key-plain``),
without DSA."""

_KEY_LINE_BYTES_MAX = 4096
_COMMENT = re.compile(r"[\x21-\x7e]+(?: [\x21-\x7e]+)*")


def make_secret() -> str:
    """Return a new secret: 256 random bits, in 43 URL-safe characters."""
    return secrets.token_urlsafe(SECRET_BYTES)


def identity_checksum(name: str, secret: str) -> str:
    """Return what is kept beside a name and its secret, to know them again.

    Damage may leave a name a name, which would be somebody else's.
    """
    return hashlib.sha256(f"turku:{name}:{secret}".encode()).hexdigest()[:16]


def hash_secret(secret: str) -> str:
    """Return the SHA-256 of a secret, in hexadecimal, which is all that the API stores of it."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def secret_matches(secret: str, secret_hash: str) -> bool:
    """Say whether `secret` is the one whose hash is `secret_hash`, in constant time."""
    return hmac.compare_digest(hash_secret(secret), secret_hash)


class KeyFormatError(ValueError):
    """A line is not one valid SSH public key; the message says what was expected."""


@dataclass(frozen=True)
class PublicKey:
    """One SSH public key, as the two words of its canonical line; the comment is no part of it."""

    type: str
    base64: str
    comment: str = field(default="", compare=False)

    @classmethod
    def parse(cls, line: str) -> PublicKey:
        """Read one line of the form ``type base64 [comment]`` (sshd(8), AUTHORIZED_KEYS).

        Options before the key, further lines and control characters are refused, and the blob
        must itself name the type (RFC 4253, section 6.6). A comment that isn't printable ASCII is
        left out: nothing depends on it.

        Raises:
            KeyFormatError: The line is something else.
        """
        if len(line) > _KEY_LINE_BYTES_MAX:
            raise KeyFormatError(f"an SSH public key has at most {_KEY_LINE_BYTES_MAX} characters")
        line = line.strip(" \r\n")
        if any(character < " " or character == "\x7f" for character in line):
            raise KeyFormatError("an SSH public key is a single line without control characters")
        words = line.split(" ", 2)
        if len(words) < 2 or words[0] not in _KEY_TYPES:
            raise KeyFormatError(
                "an SSH public key begins with its type, such as ssh-ed25519, and its base64 text"
            )
        key_type, text = words[0], words[1]
        try:
            blob = base64.b64decode(text.encode("ascii"), validate=True)
        except (binascii.Error, UnicodeEncodeError) as error:
            raise KeyFormatError("the SSH public key is not valid base64") from error
        if _first_field(blob) != key_type.encode():
            raise KeyFormatError(f"the SSH public key does not hold a key of type {key_type}")
        comment = words[2].strip() if len(words) == 3 else ""
        canonical = base64.b64encode(blob).decode("ascii")
        return cls(key_type, canonical, comment if _COMMENT.fullmatch(comment) else "")

    @property
    def line(self) -> str:
        """The key as one line without its comment: what is stored, compared and written."""
        return f"{self.type} {self.base64}"

    @property
    def fingerprint(self) -> str:
        """The key's fingerprint as ``ssh-keygen -l`` prints it, ``SHA256:...``."""
        digest = hashlib.sha256(base64.b64decode(self.base64)).digest()
        return "SHA256:" + base64.b64encode(digest).decode("ascii").rstrip("=")


def _first_field(blob: bytes) -> bytes:
    """Return the first length-prefixed string of an SSH wire blob, empty when there is none."""
    if len(blob) < 4:
        return b""
    (length,) = struct.unpack(">I", blob[:4])
    # A blob that ends with its own type has no key in it.
    return blob[4 : 4 + length] if 4 + length < len(blob) else b""


def make_ssh_key_pair(comment: str) -> tuple[str, str]:
    """Make an Ed25519 key pair.

    Args:
        comment: Free text at the end of the public line, printable ASCII.

    Returns:
        The private key in OpenSSH's format, without a passphrase (the agent runs unattended),
        and the public key's line.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ed25519

    key = ed25519.Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    ).decode("ascii")
    public = (
        key.public_key()
        .public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
        .decode("ascii")
    )
    return private, f"{public} {comment}"
