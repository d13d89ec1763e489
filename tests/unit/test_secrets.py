"""Secrets: made once, kept, readable by their owner only, and never written where others read."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from jetfleet import access, jwt
from jetfleet.secrets import Secrets


@pytest.fixture
def secrets(tmp_path: Path) -> Secrets:
    made = Secrets(tmp_path / "data")
    made.prepare()
    return made


def test_every_role_gets_credentials_with_its_own_permissions(secrets):
    for role in access.ROLES:
        token, seed = jwt.parse_credentials(secrets.credentials(role).read_text())
        claims = jwt.decode(token)
        assert claims["sub"] == jwt.public_key(seed)
        assert claims["iss"] == jwt.public_key(secrets.seed(access.FLEET_ACCOUNT))
        assert claims["nats"]["pub"]["allow"] == list(access.role_permissions(role).publish)


def test_a_worker_gets_credentials_in_the_account_of_workers(secrets):
    token, seed = jwt.parse_credentials(secrets.worker("w1").read_text())
    claims = jwt.decode(token)
    assert claims["iss"] == jwt.public_key(secrets.seed(access.WORKERS_ACCOUNT))
    assert claims["sub"] == jwt.public_key(seed)
    assert claims["nats"]["pub"]["allow"] == list(access.worker_permissions("w1").publish)


def test_only_the_owner_can_read_them(secrets):
    secrets.worker("w1")
    files = [path for path in secrets.data_dir.rglob("*") if path.is_file()]
    assert len(files) == 4 + len(access.ROLES) + 1 + 1  # seeds, roles, worker, auth.conf
    for path in files:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    for folder in ("keys", "creds"):
        assert stat.S_IMODE((secrets.data_dir / folder).stat().st_mode) == 0o700


def test_the_brokers_configuration_holds_no_secret(secrets):
    text = secrets.auth_conf.read_text()
    for path in (secrets.data_dir / "keys").iterdir():
        assert path.read_text().strip() not in text
    for account in (access.FLEET_ACCOUNT, access.WORKERS_ACCOUNT, access.SYSTEM_ACCOUNT):
        assert jwt.public_key(secrets.seed(account)) in text


def test_a_second_start_keeps_every_key(secrets):
    secrets.worker("w1")
    users = [*access.ROLES, "worker-w1"]

    def keys() -> dict[str, bytes]:
        held = {u: jwt.parse_credentials(secrets.credentials(u).read_text())[1] for u in users}
        seeds = {path.name: path.read_bytes() for path in (secrets.data_dir / "keys").iterdir()}
        return {**held, **seeds}

    before = keys()
    Secrets(secrets.data_dir).prepare()
    Secrets(secrets.data_dir).worker("w1")
    assert keys() == before


def test_a_new_release_gives_old_credentials_its_permissions(secrets, monkeypatch):
    narrow = access.Permissions(("only.this",), ())
    monkeypatch.setattr(access, "role_permissions", lambda role: narrow)
    secrets.prepare()
    token, _ = jwt.parse_credentials(secrets.credentials("gateway").read_text())
    assert jwt.decode(token)["nats"]["pub"]["allow"] == ["only.this"]


def test_two_installations_share_nothing(tmp_path):
    one, other = Secrets(tmp_path / "one"), Secrets(tmp_path / "other")
    one.prepare()
    other.prepare()
    assert one.seed(access.FLEET_ACCOUNT) != other.seed(access.FLEET_ACCOUNT)
    assert one.auth_conf.read_text() != other.auth_conf.read_text()


def test_what_is_not_a_credentials_file_is_refused_in_words():
    with pytest.raises(ValueError, match="not a credentials file"):
        jwt.parse_credentials("hello")


def test_a_token_is_signed_by_its_issuer():
    account, user = jwt.new_seed("account"), jwt.new_seed("user")
    token = jwt.encode(
        "user", issuer=account, subject=jwt.public_key(user), name="n", claims={}, issued_at=1
    )
    head, claims, signature = token.split(".")
    again = jwt.sign_nonce(account, f"{head}.{claims}").decode()
    assert again.rstrip("=").replace("+", "-").replace("/", "_") == signature
