"""What a connection proves itself with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from jetfleet import jwt


class CredentialSource(Protocol):
    """Where a connection gets its token and signature from, each time it connects."""

    def token(self) -> str: ...

    def sign(self, nonce: str) -> bytes: ...


@dataclass(frozen=True, slots=True)
class CredentialsFile:
    """A ``.creds`` file, read anew for every connect so that a renewed one takes effect."""

    path: Path

    def token(self) -> str:
        return jwt.parse_credentials(self.path.read_text())[0]

    def sign(self, nonce: str) -> bytes:
        return jwt.sign_nonce(jwt.parse_credentials(self.path.read_text())[1], nonce)
