"""NATS JWTs (version 2), as much of them as jetfleet issues: operator, account, user.

The broker checks these by signature alone, so a worker's rights need no service that must be up
when it connects, and they end by themselves. Format: https://github.com/nats-io/jwt (v2 claims).
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any, Literal

import nkeys
from nacl.exceptions import CryptoError
from nacl.signing import VerifyKey

Kind = Literal["operator", "account", "user"]
PUBLIC_BYTES = 35  # of a public NKey: kind, key, checksum
_PREFIX: Mapping[Kind, int] = {
    "operator": nkeys.PREFIX_BYTE_OPERATOR,
    "account": nkeys.PREFIX_BYTE_ACCOUNT,
    "user": nkeys.PREFIX_BYTE_USER,
}


def new_seed(kind: Kind) -> bytes:
    """A fresh ed25519 seed in NKey text form (``SO...``, ``SA...``, ``SU...``)."""
    return bytes(nkeys.encode_seed(os.urandom(32), _PREFIX[kind]))


def public_key(seed: bytes) -> str:
    """The public NKey of a seed."""
    return bytes(_key(seed).public_key).decode()


def encode(
    kind: Kind,
    *,
    issuer: bytes,
    subject: str,
    name: str,
    claims: Mapping[str, Any],
    issued_at: int,
    expires_at: int | None = None,
) -> str:
    """A signed JWT.

    ``issuer`` is the seed that signs; ``subject`` the public key spoken for; ``claims`` the
    kind's own part; times are Unix seconds, no ``expires_at`` means it never ends.
    """
    body: dict[str, Any] = {
        "iat": issued_at,
        "iss": public_key(issuer),
        "name": name,
        "sub": subject,
        "nats": {**claims, "type": kind, "version": 2},
    }
    if expires_at is not None:
        body["exp"] = expires_at
    body["jti"] = _b32(hashlib.sha256(_json(body)).digest())
    head = _b64(_json({"typ": "JWT", "alg": "ed25519-nkey"}))
    signed = f"{head}.{_b64(_json(body))}"
    return f"{signed}.{_b64(_key(issuer).sign(signed.encode()))}"


def decode(token: str) -> dict[str, Any]:
    """The claims of a JWT, unverified: for looking at one's own (its expiry, its permissions)."""
    part = token.split(".")[1]
    claims: dict[str, Any] = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    return claims


def verified(token: str, issuer: str) -> dict[str, Any]:
    """The claims of a JWT that this public key has signed.

    Raises:
        ValueError: it is no JWT, or another key signed it (or none).
    """
    signed, _, signature = token.rpartition(".")
    try:
        verify(issuer, signed, signature)
        claims = decode(token)
    except (ValueError, IndexError) as error:
        raise ValueError("the signature is not that of this installation") from error
    return claims


def verify(public: str, text: str, signature: str) -> None:
    """Whether this public NKey signed this text; ``signature`` is base64, of either alphabet.

    Raises:
        ValueError: it did not.
    """
    raw = base64.b32decode(public + "=" * (-len(public) % 8))
    if len(raw) != PUBLIC_BYTES:
        raise ValueError("not a public NKey")
    plain = signature.rstrip("=").replace("+", "-").replace("/", "_")
    sealed = base64.urlsafe_b64decode(plain + "=" * (-len(plain) % 4))
    try:
        VerifyKey(raw[1:33]).verify(text.encode(), sealed)
    except CryptoError as error:
        raise ValueError("the signature does not fit") from error


def credentials_text(token: str, seed: bytes) -> str:
    """The contents of a ``.creds`` file, as every NATS client reads it."""
    return (
        f"-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{seed.decode()}\n------END USER NKEY SEED------\n"
    )


def parse_credentials(text: str) -> tuple[str, bytes]:
    """The JWT and the seed of a ``.creds`` text.

    Raises:
        ValueError: it holds no JWT or no seed.
    """
    lines = [
        line.strip() for line in text.splitlines() if line.strip() and not line.startswith("--")
    ]
    if len(lines) < 2:
        raise ValueError("not a credentials file: it must hold a user JWT and a user NKEY seed")
    return lines[0], lines[1].encode()


def sign_nonce(seed: bytes, nonce: str) -> bytes:
    """The answer to the broker's challenge, base64 as the CONNECT message carries it."""
    return base64.b64encode(_key(seed).sign(nonce.encode()))


def _key(seed: bytes) -> Any:
    return nkeys.from_seed(bytearray(seed))


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()


def _b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _b32(raw: bytes) -> str:
    return base64.b32encode(raw).rstrip(b"=").decode()
