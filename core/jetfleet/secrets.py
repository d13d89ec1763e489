"""The secrets of one installation: made once, kept in one folder, readable by its owner only.

``<data>/keys/``   seeds of operator and accounts; whoever has JF's or WRK's may mint users.
``<data>/creds/``  one ``.creds`` file per role and per local worker.
``<data>/auth.conf``  the part of the broker's configuration that names them (public keys only).
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from jetfleet import access, jwt
from jetfleet.errors import StartupError

_OPERATOR = "operator"
_ACCOUNTS = {
    access.SYSTEM_ACCOUNT: "sys",
    access.FLEET_ACCOUNT: "jf",
    access.WORKERS_ACCOUNT: "wrk",
}


@dataclass(frozen=True, slots=True)
class Secrets:
    """Where an installation's secrets lie, and the operations on them."""

    data_dir: Path

    @property
    def auth_conf(self) -> Path:
        return self.data_dir / "auth.conf"

    def credentials(self, user: str) -> Path:
        """The credentials file of a role (``gateway``) or worker (``worker-<name>``)."""
        return self.data_dir / "creds" / f"{user}.creds"

    def seed(self, owner: str) -> bytes:
        """The seed of ``operator`` or of an account (``JF``, ``WRK``, ``SYS``)."""
        name = _ACCOUNTS.get(owner, owner)
        path = self.data_dir / "keys" / f"{name}.seed"
        if not path.exists():
            write(path, jwt.new_seed("account" if owner in _ACCOUNTS else "operator").decode())
        return path.read_text().strip().encode()

    def held_seed(self, owner: str) -> bytes:
        """The seed of an account, which must be there.

        Raises:
            StartupError: this folder does not hold it; a new one would be the broker's of nobody.
        """
        path = self.data_dir / "keys" / f"{_ACCOUNTS[owner]}.seed"
        if not path.exists():
            raise StartupError(
                f"no key at {path}: run this on the machine that holds the installation's keys, "
                "with --data-dir pointing at its folder"
            )
        return self.seed(owner)

    def prepare(self) -> None:
        """Make what is missing: keys, auth.conf, and credentials for every role."""
        now = int(time.time())
        write(self.auth_conf, self._auth_conf(now))
        account = self.seed(access.FLEET_ACCOUNT)
        for role in access.ROLES:
            self._issue(role, access.role_permissions(role), account, now)

    def worker(self, name: str) -> Path:
        """The credentials of a local worker, made when missing."""
        user = f"worker-{name}"
        self._issue(
            user,
            access.worker_permissions(name),
            self.seed(access.WORKERS_ACCOUNT),
            int(time.time()),
        )
        return self.credentials(user)

    def _issue(self, user: str, permissions: access.Permissions, account: bytes, now: int) -> None:
        """(Re)write a user's token, keeping its key, so that a new release's permissions hold."""
        path = self.credentials(user)
        seed = jwt.parse_credentials(path.read_text())[1] if path.exists() else jwt.new_seed("user")
        token = access.user_token(
            permissions, account_seed=account, user=jwt.public_key(seed), name=user, issued_at=now
        )
        write(path, jwt.credentials_text(token, seed))

    def _auth_conf(self, now: int) -> str:
        operator = self.seed(_OPERATOR)
        keys = {name: jwt.public_key(self.seed(name)) for name in _ACCOUNTS}
        claims = {
            access.SYSTEM_ACCOUNT: access.system_account_claims(),
            access.FLEET_ACCOUNT: access.fleet_account_claims(),
            access.WORKERS_ACCOUNT: access.workers_account_claims(keys[access.FLEET_ACCOUNT]),
        }
        operator_token = jwt.encode(
            "operator",
            issuer=operator,
            subject=jwt.public_key(operator),
            name="jetfleet",
            claims={"system_account": keys[access.SYSTEM_ACCOUNT]},
            issued_at=now,
        )
        preload = "\n".join(
            f"  # {name}\n  {keys[name]}: "
            + jwt.encode(
                "account",
                issuer=operator,
                subject=keys[name],
                name=name,
                claims=claims[name],
                issued_at=now,
            )
            for name in _ACCOUNTS
        )
        return (
            "# Written by jetfleet; what it grants is in core/jetfleet/access.py.\n"
            f"operator: {operator_token}\n"
            f"system_account: {keys[access.SYSTEM_ACCOUNT]}\n"
            f"resolver: MEMORY\nresolver_preload {{\n{preload}\n}}\n"
        )


def write(path: Path, text: str) -> None:
    """Replace a file atomically, readable by its owner only."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    staged = path.with_suffix(path.suffix + ".new")
    descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    staged.replace(path)
