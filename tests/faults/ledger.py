"""The fleet as its log says, and what must hold of every decision in it, whoever took it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from jetfleet.client import Client
from jetfleet.events import JobScaled, ReplicaAssigned, ReplicaReleased, WorkerLost
from jetfleet.fleet import FleetState, ReplicaState, evolve_fleet
from jetfleet.log import Record
from jetfleet.streams import FLEET
from stack import heard

DECISIONS = (ReplicaAssigned, ReplicaReleased, JobScaled)


@dataclass
class Ledger:
    """FLEET, folded event by event."""

    state: FleetState = field(default_factory=FleetState)
    decisions: list[tuple[int, str]] = field(default_factory=list)  # position, who took it
    assigned: list[str] = field(default_factory=list)  # jobs, one entry a decision
    lost: list[str] = field(default_factory=list)  # workers, one entry a declaration
    most: dict[str, int] = field(default_factory=dict)  # replicas a job had at once, at most

    def take(self, record: Record) -> None:
        """Fold a record; asserts that a decision was taken in sight of all before it."""
        event = record.event
        assert event is not None, record
        self.state = evolve_fleet(self.state, event, record.seq)
        if isinstance(event, DECISIONS):
            seen = event.data.why.observed_fleet_seq
            others = {who for at, who in self.decisions if at > seen} - {event.source}
            assert not others, f"{event.source} did not know what {others} decided: {record}"
            self.decisions.append((record.seq, event.source))
        if isinstance(event, ReplicaAssigned):
            self.assigned.append(event.data.job)
            self.most[event.data.job] = max(self.most.get(event.data.job, 0),
                                            len(self.serving(event.data.job)))  # fmt: skip
        if isinstance(event, WorkerLost):
            self.lost.append(event.data.worker)

    def serving(self, job: str, *status: str) -> list[ReplicaState]:
        """Replicas of a job that serve or will, on workers that are there."""
        return [
            replica
            for replica in self.state.replicas.values()
            if replica.job == job
            and replica.status in (status or ("assigned", "preparing", "ready"))
            and self.state.workers[replica.worker].status == "joined"
        ]


async def read(client: Client) -> Ledger:
    """All that the log says by now."""
    ledger = Ledger()
    async for record in client.events(FLEET):
        ledger.take(record)
    return ledger


async def once(
    client: Client, holds: Callable[[Ledger], object], what: str, within_s: float
) -> Ledger:
    """The ledger as of the first event after which something holds; bounded."""
    ledger = Ledger()

    def taken(record: Record) -> bool:
        ledger.take(record)
        return bool(holds(ledger))

    await heard(client, FLEET, taken, what, within_s=within_s)
    return ledger


def assert_never_more(ledger: Ledger, wanted: Mapping[str, int]) -> None:
    """No job ever had more replicas than were wanted of it."""
    assert {job: most for job, most in ledger.most.items() if most > wanted[job]} == {}
