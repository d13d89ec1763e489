"""Credentials of the fleet's account, with the rights that a test wants."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from jetfleet import access, jwt
from jetfleet.secrets import Secrets

EVERYTHING = access.Permissions((">",), (">",))  # as no role has


@dataclass
class Rights:
    """A ``CredentialSource`` with these permissions; its tokens end after ``life_s``, or never."""

    secrets: Secrets
    permissions: access.Permissions = EVERYTHING
    life_s: int | None = None
    key: bytes = field(default_factory=lambda: jwt.new_seed("user"))

    def token(self) -> str:
        now = int(time.time())
        return access.user_token(
            self.permissions,
            account_seed=self.secrets.seed(access.FLEET_ACCOUNT),
            user=jwt.public_key(self.key),
            name="test",
            issued_at=now,
            expires_at=None if self.life_s is None else now + self.life_s,
        )

    def sign(self, nonce: str) -> bytes:
        return jwt.sign_nonce(self.key, nonce)
