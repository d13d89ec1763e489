"""Join tokens: how a machine that knows nobody here becomes a worker.

A token is one string. It holds a user of the workers' account that may do nothing but ask to be let
in (``access.join_permissions``), and the terms on which it will be. The terms are claims of that
user's JWT: the account's signature covers them, so the holder can read but not change them. Who was
let in with a token, and whether it was taken back, is in the log (``fleet.TokenState``).
"""

from __future__ import annotations

import base64
import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jetfleet import access, jwt
from jetfleet.errors import InvalidRequest, JetfleetError

PREFIX = "jfj_"
CLAIM = "jetfleet_join"  # in the JWT's part for NATS, beside its permissions
SCHEMES = ("nats://", "tls://", "ws://", "wss://")
SETTINGS = ("tenant", "shards", "inline_limit", "payload_limit")  # which a worker is told
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


class BadToken(JetfleetError):
    """This is no join token of this installation; `jetfleet worker token` makes one."""

    code = "bad_token"


@dataclass(frozen=True, slots=True)
class Terms:
    """On what terms the holder of a token is let in. ``expires_at``: Unix seconds."""

    token: str  # its id
    expires_at: int
    trusted: bool = False
    owner: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    uses: int = 1  # machines

    def claims(self) -> dict[str, Any]:
        return {
            "id": self.token,
            "trusted": self.trusted,
            "owner": self.owner,
            "labels": dict(self.labels),
            "uses": self.uses,
        }

    @classmethod
    def read(cls, claims: Mapping[str, Any]) -> Terms:
        """Raises BadToken when these are not the claims of a join token."""
        try:
            own = claims["nats"][CLAIM]
            return cls(
                str(own["id"]), int(claims["exp"]), bool(own["trusted"]), str(own["owner"]),
                {str(k): str(v) for k, v in own["labels"].items()}, int(own["uses"]),
            )  # fmt: skip
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BadToken from error


@dataclass(frozen=True, slots=True)
class JoinToken:
    """A token in the hands of its holder; a credential source of its connections."""

    jwt_text: str
    seed: bytes = field(repr=False)
    url: str = ""  # where the broker is, as seen by whoever made the token; may be left out

    @property
    def terms(self) -> Terms:
        """As the token says; the conductor alone checks the signature."""
        return Terms.read(jwt.decode(self.jwt_text))

    def token(self) -> str:
        return self.jwt_text

    def sign(self, nonce: str) -> bytes:
        return jwt.sign_nonce(self.seed, nonce)

    def text(self) -> str:
        """The string that is handed on: letters, digits, ``-`` and ``_``."""
        document = {"jwt": self.jwt_text, "seed": self.seed.decode(), "url": self.url}
        raw = base64.urlsafe_b64encode(json.dumps(document, separators=(",", ":")).encode())
        return PREFIX + raw.rstrip(b"=").decode()

    @classmethod
    def parse(cls, text: str) -> JoinToken:
        """Raises BadToken: it is not such a string, or a part of it is missing."""
        body = text.strip()
        if not body.startswith(PREFIX):
            raise BadToken(f"a join token begins with {PREFIX}; this does not")
        raw = body.removeprefix(PREFIX)
        try:
            document = json.loads(base64.urlsafe_b64decode(raw + "=" * (-len(raw) % 4)))
            found = cls(str(document["jwt"]), str(document["seed"]).encode(), str(document["url"]))
            jwt.public_key(found.seed)
            _ = found.terms
        except BadToken:
            raise
        except Exception as error:  # whatever a cut or altered string makes its readers raise
            raise BadToken("this join token is not whole; copy it again") from error
        return found


def is_token_id(text: str) -> bool:
    """Whether it has the form of a token's id (``Terms.token``)."""
    return re.fullmatch("[0-9a-f]{16}", text) is not None


def new_terms(
    now: int,
    *,
    for_s: int,
    trusted: bool = False,
    owner: str = "",
    labels: Mapping[str, str] | None = None,
    uses: int = 1,
) -> Terms:
    """Terms under a fresh id. ``now``: Unix seconds; ``for_s``: how long the token lives."""
    return Terms(secrets.token_hex(8), now + for_s, trusted, owner, labels or {}, uses)


def issue(terms: Terms, *, account_seed: bytes, now: int, url: str = "") -> JoinToken:
    """A token on these terms, signed by the account of the workers."""
    seed = jwt.new_seed("user")
    text = access.user_token(
        access.join_permissions(terms.token),
        account_seed=account_seed,
        user=jwt.public_key(seed),
        name=f"join-{terms.token}",
        issued_at=now,
        expires_at=terms.expires_at,
        more={CLAIM: terms.claims()},
    )
    return JoinToken(text, seed, url)


def verified(jwt_text: str, account: str) -> Terms:
    """The terms of a token that the account (its public key) has signed. Raises BadToken."""
    try:
        return Terms.read(jwt.verified(jwt_text, account))
    except ValueError as error:
        raise BadToken(f"this join token is forged: {error}") from error


def proof_text(token: str, worker: str) -> str:
    """What a worker signs with its own key, so that nobody asks in the name of another's key."""
    return f"jetfleet.join.{token}.{worker}"


def seconds_of(text: str) -> int:
    """``90s``, ``30m``, ``24h`` or ``7d`` in seconds. Raises InvalidRequest."""
    found = re.fullmatch(r"([1-9]\d{0,8})([smhd])", text.strip())
    if found is None:
        raise InvalidRequest(f"{text!r} is no duration: write it as 90s, 30m, 24h or 7d")
    return int(found[1]) * _UNITS[found[2]]


def labels_of(pairs: list[str]) -> dict[str, str]:
    """``["zone=attic"]`` as a mapping. Raises InvalidRequest."""
    labels = {}
    for pair in pairs:
        name, given, value = pair.partition("=")
        if not name or not given:
            raise InvalidRequest(f"{pair!r} is no label: write it as name=value")
        labels[name] = value
    return labels
