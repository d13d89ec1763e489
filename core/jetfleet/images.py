"""Which images workers have run: a fold over fleet events, for placement.

Frozen values, no clock, no I/O. It is what the log tells of disks: an image that ran on a worker is
taken to be there still, also after the agent was restarted. Where it was removed meanwhile,
placement was wrong by one pull.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from jetfleet.events import Event, ReplicaReady
from jetfleet.fleet import FleetState
from jetfleet.persistent import put

KEPT = 64  # images of a worker, those that became ready last


@dataclass(frozen=True, slots=True)
class Images:
    """Names of images by worker, as their models declare them; the last that ran is the last."""

    workers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def by_image(self) -> dict[str, frozenset[str]]:
        """The workers that ran each."""
        found: dict[str, set[str]] = {}
        for worker, ran in self.workers.items():
            for image in ran:
                found.setdefault(image, set()).add(worker)
        return {image: frozenset(workers) for image, workers in found.items()}


def evolve_images(state: Images, event: Event, fleet: FleetState) -> Images:
    """Fold one fleet event; ``fleet`` knows its replica."""
    if not isinstance(event, ReplicaReady):
        return state
    replica = fleet.replicas.get(event.data.replica)
    if replica is None or replica.worker != event.data.worker:
        return state
    image, ran = replica.spec.model.image, state.workers.get(replica.worker, ())
    if image is None or ran[-1:] == (image,):
        return state
    ran = (*(each for each in ran if each != image), image)[-KEPT:]
    return Images(put(state.workers, replica.worker, ran))
