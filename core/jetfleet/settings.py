"""Settings of a process, from ``JETFLEET_*`` environment variables; each has a working default."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from jetfleet.specs import Name

DEFAULT_DATA_DIR = Path(".jetfleet")


class Settings(BaseSettings):
    """What every process of ours needs to know."""

    model_config = SettingsConfigDict(env_prefix="JETFLEET_", frozen=True)

    nats_url: str = Field("nats://127.0.0.1:4222", description="nats://, tls://, ws:// or wss://")
    credentials: Path | None = Field(None, description=".creds file of the role or worker")
    tenant: Name = "default"
    data_dir: Path = Field(DEFAULT_DATA_DIR, description="one folder holds all data of `up`")
    shards: int = Field(4, ge=1, le=1024, description="queue shards; fixed for an installation")
    stream_replicas: int = Field(1, ge=1, le=5, description="of the log's streams; 3 in a cluster")
    inline_limit: int = Field(
        128 * 1024, ge=1024, le=768 * 1024, description="bytes of JSON kept in the event itself"
    )
    payload_limit: int = Field(64 * 1024**2, description="largest input or output, bytes of JSON")
    worker_life_s: float = Field(
        3600, ge=1, description="seconds that credentials of workers that joined live"
    )
    capacity_workers: int | None = Field(
        None, ge=0, description="most workers of all providers at once; None: what they offer"
    )
    capacity_per_hour: float | None = Field(
        None, ge=0, description="most that the workers of providers may cost an hour, together"
    )
    capacity_tenant_workers: int | None = Field(
        None, ge=0, description="most workers of providers for the jobs of one tenant"
    )
    capacity_tenant_per_hour: float | None = Field(
        None, ge=0, description="most that one tenant's workers of providers may cost an hour"
    )
    join_token: str = Field("", repr=False, description="what `jetfleet agent --join` joins with")
    http_host: str = "127.0.0.1"
    http_port: int = 8787

    def credentials_of(self, user: str) -> Path:
        """The credentials to use: those set explicitly, else the data folder's for ``user``."""
        return self.credentials or self.data_dir / "creds" / f"{user}.creds"
