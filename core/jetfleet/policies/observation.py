"""What a scaling policy sees of one job: one frozen value.

The conductor and the simulator fill it in. Policies keep nothing: what they need to remember, the
``history`` of their decisions, is handed in with everything else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

WINDOWS_S = (6.0, 10.0, 30.0, 60.0, 300.0)  # what the policies' defaults look at


@dataclass(frozen=True, slots=True)
class Window:
    """The last ``seconds`` before ``now``, or as much of them as was observed.

    ``concurrency``: mean number of invocations queued or running; None: not measured.
    """

    seconds: float
    arrivals: int
    concurrency: float | None = None


@dataclass(frozen=True, slots=True)
class Service:
    """Mean seconds of one run on a type of GPU, over ``runs``; ``replicas`` are on it now."""

    mean_s: float
    runs: int
    replicas: int = 0


@dataclass(frozen=True, slots=True)
class Past:
    """A decision taken before. ``wanted``: before holding and bounds; ``surge``: see ``kpa``."""

    at: datetime
    wanted: int
    desired: int
    surge: bool = False


@dataclass(frozen=True, slots=True)
class JobObservation:
    """One job as it is ``now``. Ages are seconds since a replica was assigned."""

    now: datetime
    min_replicas: int
    max_replicas: int
    slots: int = 1  # invocations at once in one replica
    queued: int = 0  # waiting for a start
    oldest_wait_s: float = 0.0
    in_flight: int = 0
    windows: tuple[Window, ...] = ()
    dispersion: float = 1.0  # index of dispersion of counts, see ``estimates.index_of_dispersion``
    ready_ages_s: tuple[float, ...] = ()
    booting_ages_s: tuple[float, ...] = ()
    draining: int = 0
    services: Mapping[str, Service] = field(default_factory=dict)  # by type of GPU; empty: none
    cold_start_s: float | None = None  # mean, from assigned to ready
    history: tuple[Past, ...] = ()  # oldest first

    @property
    def unfinished(self) -> int:
        """Invocations queued or running."""
        return self.queued + self.in_flight

    @property
    def ready(self) -> int:
        """Replicas that serve."""
        return len(self.ready_ages_s)

    @property
    def capacity(self) -> int:
        """Replicas that serve or will: one that is booting counts, or it would be started twice."""
        return len(self.ready_ages_s) + len(self.booting_ages_s)

    @property
    def drained_for_s(self) -> float:
        """How long nothing has arrived, as far as windows tell; 0 while anything is unfinished."""
        if self.unfinished:
            return 0.0
        return max((w.seconds for w in self.windows if not w.arrivals), default=0.0)

    def young(self, age_s: float) -> int:
        """How many replicas were assigned less than ``age_s`` ago."""
        return sum(age < age_s for age in (*self.ready_ages_s, *self.booting_ages_s))

    def nearest(self, seconds: float) -> Window | None:
        """The window whose length is closest; None: there are none."""
        return min(self.windows, key=lambda w: abs(w.seconds - seconds), default=None)
