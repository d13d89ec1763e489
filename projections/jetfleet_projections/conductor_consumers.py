"""The consumers that pulls need: the conductor makes them, nobody else has the right to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from jetfleet import subjects
from jetfleet.catalog import JobKey, RegistryState
from jetfleet.connection import NOT_FOUND, ApiError, Connection
from jetfleet.fleet import FleetState
from jetfleet.specs import JobSpec
from jetfleet.streams import FLEET, job_consumers, worker_consumer


@dataclass(slots=True, eq=False)
class Consumers:
    """Which were made already. ``ensure`` in every round; ``restarted`` after a broker restart."""

    connection: Connection
    shards: int
    _made: dict[str, dict[str, Any]] = field(default_factory=dict)  # by name: the configuration
    # The spec of a job, the session of a worker: looked at in every round, so by identity.
    _made_for: dict[JobKey | str, JobSpec | int] = field(default_factory=dict)

    def restarted(self) -> None:
        """Those in memory are gone."""
        self._made.clear()
        self._made_for.clear()

    async def ensure(self, registry: RegistryState, fleet: FleetState) -> None:
        """Make what pulls will need: one consumer a job and class, one a worker's session."""
        for key, state in registry.jobs.items():
            if self._made_for.get(key) is not state.spec:
                tenant, job = key
                shard = subjects.shard_of(job, self.shards)
                for config in job_consumers(tenant, job, state.spec, shard):
                    await self._ensure(subjects.queue_stream(shard), config)
                self._made_for[key] = state.spec
        for worker in fleet.workers.values():
            known = self._made_for.get(worker.name) == worker.joined_seq
            if not known and worker.status in ("joined", "draining"):
                config = worker_consumer(worker.name, worker.joined_seq)
                if await self._ensure(FLEET, config, replace=True):
                    # A pull that met the old consumer as it was deleted gets no answer at all.
                    nudge = subjects.command(worker.name)
                    await self.connection.publish(nudge, b'{"listen":true}')
                self._made_for[worker.name] = worker.joined_seq

    async def _ensure(self, stream: str, config: dict[str, Any], *, replace: bool = False) -> bool:
        """Whether it was made now; with ``replace``, in place of one of an earlier session."""
        name = config["name"]
        if self._made.get(name) == config:
            return False
        verb = f"{stream}.{name}"
        if replace and not await self._starts_at(verb, config["opt_start_seq"]):
            try:
                await self.connection.api(f"CONSUMER.DELETE.{verb}")
            except ApiError as error:
                if error.status != NOT_FOUND:
                    raise
        await self.connection.api(
            f"CONSUMER.CREATE.{verb}.{config['filter_subject']}",
            {"stream_name": stream, "config": config, "action": ""},
        )
        self._made[name] = config
        return True

    async def _starts_at(self, verb: str, seq: int) -> bool:
        """Whether this worker's consumer is already the one of its present session."""
        try:
            info = await self.connection.api(f"CONSUMER.INFO.{verb}")
        except ApiError:
            return False
        return bool(info["config"].get("opt_start_seq") == seq)
