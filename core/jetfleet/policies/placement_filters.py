"""Which workers may run a replica of a job at all. Each filter says what it objects to, in words;
the empty string is no objection."""

from __future__ import annotations

from collections.abc import Container, Sequence
from datetime import datetime, timedelta

from jetfleet.fleet import WorkerState
from jetfleet.policies.placement_rooms import Room
from jetfleet.specs import JobSpec, Resources
from jetfleet.yielding import Yielded

LONGEST_BACKOFF_S = 60.0
UNTRUSTED = "not trusted, and the model's example input is to be tried on a trusted worker first"
YIELDED_S, LONGEST_YIELDED_S = 30.0, 600.0


def unsuitable(spec: JobSpec, worker: WorkerState, *, trial: bool = False) -> str:
    """What a worker is that the job does not take, however much room it has.

    ``trial``: its model is to run its example input there first.
    """
    if trial and not worker.trusted:
        return UNTRUSTED
    if spec.assignment == "manual" and worker.name not in spec.workers:
        return "not among the workers this job is assigned to"
    wish = spec.placement
    if wish.trusted and not worker.trusted:
        return "not trusted"
    for name, value in wish.labels.items():
        if worker.labels.get(name) != value:
            return f"its label {name} is {worker.labels.get(name, 'not set')}, not {value}"
    most = wish.max_price_per_hour
    if most is not None and worker.price_per_hour > most:
        return f"costs {worker.price_per_hour:g} an hour, at most {most:g} is paid"
    return ""


def no_room(need: Resources, room: Room) -> str:
    """What a worker lacks now for one more replica."""
    if room.memory_mib < need.memory_mib:
        return f"{max(0, room.memory_mib)} MiB free, {need.memory_mib} needed"
    if need.gpu_memory_mib and room.gpus_for(need) is None:
        return f"no GPU with {need.gpu_memory_mib} MiB free and the capability needed"
    return ""


def place_of(spec: JobSpec, worker: WorkerState) -> str | None:
    """What no two replicas may share: the worker, its owner; None: they may share anything."""
    if spec.placement.apart == "workers":
        return worker.name
    return worker.owner if spec.placement.apart == "owners" else None


def too_close(spec: JobSpec, worker: WorkerState, taken: Container[str | None]) -> str:
    """Whether a replica is already where another must not be. ``taken``: see ``place_of``."""
    if place_of(spec, worker) not in taken:
        return ""
    return f"has a replica, or its owner: they are kept apart by {spec.placement.apart}"


def back_off(failures: Sequence[datetime], now: datetime) -> str:
    """Whether a worker is left alone for now, on which replicas of the job failed then."""
    if failures:
        wait = min(2.0 ** (len(failures) - 1), LONGEST_BACKOFF_S)
        if now < failures[-1] + timedelta(seconds=wait):
            return f"{len(failures)} failures there, waiting {wait:g} s after the last"
    return ""


def gave_way(yielded: Yielded | None, now: datetime) -> str:
    """Whether a worker is left alone for now, on which the job made room for a more important one.

    It would else come back as soon as that one pauses, and have to go again.
    """
    if yielded is not None:
        times = len(yielded.times)
        wait = min(YIELDED_S * 2.0 ** (times - 1), LONGEST_YIELDED_S)
        if now < yielded.at + timedelta(seconds=wait):
            often = "" if times == 1 else f" {times} times"
            return f"made room there{often} for {yielded.to[1]}, waiting {wait:g} s after the last"
    return ""
