"""Preemption: where a job fits nowhere, strictly less important replicas make room on one worker.

First what is being let go anyway is counted on; only what is still missing is asked to go. The room
is held for the job while those replicas end what they run, so that nobody else takes it, and the
job gets no second place meanwhile. ``docs/policies.md`` has the rules.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import islice

from jetfleet.catalog import JobKey, JobState
from jetfleet.events import Candidate, RoomFor
from jetfleet.fleet import FleetState, ReplicaState
from jetfleet.policies.placement_filters import unsuitable
from jetfleet.policies.placement_rooms import Room, capable
from jetfleet.policies.placement_search import DIGITS, REJECTED, SCORED, Release, Round, Search
from jetfleet.specs import Resources

LOOKS = 8_000  # at a worker, in one round of the whole fleet: of 1,000 workers for 8 replicas
SEVERAL = 4  # looking for several replicas to go costs as much as looking for one so often
CHAIN = timedelta(minutes=10)  # whose replica made room lately makes nobody make room
FREED = timedelta(seconds=30)  # room that was made is the job's to take

# How much it costs to make room on a worker: how many go, how important the most important of them
# and all together are, how many serve, how many are the last of their job that does, and when the
# oldest came (the younger first).
Cost = tuple[int, int, int, int, int, int]
TOO_DEAR = (
    "{0} replicas would have to go",
    "of priority {1} is what would have to go",
    "what would have to go is more important",
    "{3} would have to go that serve",
    "what would have to go is the last of its job that serves",
    "what would have to go is older",
)


@dataclass(slots=True)
class There:
    """A replica on a worker, and what its going would give back.

    ``last``: its job has no other that serves.
    """

    replica: ReplicaState
    priority: int
    serves: bool
    memory_mib: int
    gpu_memory_mib: int
    gpus: tuple[str, ...]
    last: bool = False

    @classmethod
    def of(cls, replica: ReplicaState, priority: int) -> There:
        need = replica.spec.model.resources
        return cls(
            replica, priority, replica.status == "ready", need.memory_mib, need.gpu_memory_mib,
            replica.gpus,
        )  # fmt: skip


def _liking(one: There) -> tuple[int, bool, bool, int]:
    """Who goes first: the least important, what serves nobody yet, the youngest."""
    return (one.priority, one.serves, one.last, -one.replica.assigned_seq)


def _cost(going: Sequence[There]) -> Cost:
    ranks = [one.priority for one in going]
    return (
        len(going), max(ranks), sum(ranks), sum(one.serves for one in going),
        sum(one.last for one in going), -min(one.replica.assigned_seq for one in going),
    )  # fmt: skip


Able = tuple[Room, list[There], list[There]]  # who leaves a worker, and who could be made to
Found = tuple[Cost, str, tuple[There, ...]]  # on which worker, and who would have to go


@dataclass(slots=True)
class Precedence:
    """What one round of placement lets more important jobs take from less important ones.

    ``least``: the lowest priority of any job.
    """

    work: Round
    least: int
    left: int = LOOKS
    touched: set[JobKey] = field(default_factory=set)  # jobs whose replicas make room
    gone: set[str] = field(default_factory=set)  # ids of these replicas
    _hopeless: set[object] = field(default_factory=set)
    _looked: bool = False
    _leaving: dict[str, list[There]] = field(default_factory=dict)  # by worker, as is the next
    _there: dict[str, list[There]] = field(default_factory=dict)
    _serving: Counter[JobKey] = field(default_factory=Counter)
    _every: int = 1
    _asked: int = 0

    def may(self, job: JobState) -> bool:
        """Whether a job is more important than any, and does not renounce that."""
        wish = job.spec.placement
        return wish.preempt != "never" and wish.priority > self.least

    def share(self, jobs: int) -> None:
        """So many jobs may ask others to go: too many for one round take turns, by the second."""
        self._every = max(1, -(-jobs * len(self.work.rooms) // LOOKS))

    def make_room(
        self, job: JobState, current: Iterable[ReplicaState], missing: int, needs: object
    ) -> None:
        """Hold room for as many replicas as are missing, or make it.

        ``needs``: equal for jobs that need the same of a worker.
        """
        its_turn = (self._asked + int(self.work.now.timestamp())) % self._every == 0
        self._asked += 1
        if missing <= 0:
            return
        self._look()
        known = (needs, job.spec.placement.priority)
        may_ask = its_turn and known not in self._hopeless and not self._lately(job.key)
        if not may_ask and not any(self._would_do(job, name) for name in self._leaving):
            return
        search = Search.of(self.work, job, current)
        for _ in range(missing):
            if self._hold_what_leaves(search):
                continue
            if not may_ask or self.left <= 0 or not self._preempt(search, known):
                return

    def _look(self) -> None:
        """Find out who is where, once in a round and only when somebody lacks room."""
        if self._looked:
            return
        work, jobs = self.work, self.work.seen.registry.jobs
        going = {d.replica.id for d in work.decisions if isinstance(d, Release)}
        self._looked = True
        for replica in work.fleet.replicas.values():
            if replica.worker not in work.rooms:
                continue
            job = jobs.get(replica.key)
            one = There.of(replica, 0 if job is None else job.spec.placement.priority)
            if job is None or replica.status == "releasing" or replica.id in going:
                self._leaving.setdefault(replica.worker, []).append(one)
            else:
                self._there.setdefault(replica.worker, []).append(one)
            if one.serves:
                self._serving[replica.key] += 1
        for ones in self._there.values():
            for one in ones:
                one.last = one.serves and self._serving[one.replica.key] == 1
            ones.sort(key=_liking)

    def _lately(self, key: JobKey) -> bool:
        """No chains: who was made to give way makes nobody give way for a while."""
        if key in self.touched:
            return True
        return any(self.work.now - y.at < CHAIN for y in self.work.yielded.get(key, {}).values())

    # -- what leaves anyway

    def _hold_what_leaves(self, search: Search) -> bool:
        """Hold a place where the job fits once those have stopped that were let go."""
        leaving, key = self._leaving, search.job.key

        def order(name: str) -> tuple[bool, str]:
            return (all(one.replica.yields_to != key for one in leaving[name]), name)

        for name in sorted(leaving, key=order):
            room = self.work.rooms[name]
            if not self._would_do(search.job, name) or _objection(search, room):
                continue
            if self._hold(search, room, leaving[name]):
                return True
        return False

    def _would_do(self, job: JobState, name: str) -> bool:
        """Whether what leaves a worker leaves room for one more."""
        room, spec = self.work.rooms[name], job.spec
        if unsuitable(spec, room.worker):
            return False
        return _gpus_without(room, spec.model.resources, self._leaving[name]) is not None

    def _hold(self, search: Search, room: Room, without: Sequence[There]) -> bool:
        """Keep others from the room there will be without these; whether it is enough."""
        need = search.job.spec.model.resources
        gpus = _gpus_without(room, need, without)
        if gpus is None:
            return False
        self.work.take(room, need, gpus)
        search.occupy(room)
        return True

    # -- what is made to leave

    def _preempt(self, search: Search, known: object) -> bool:
        """Let replicas go where that is cheapest; whether it is possible anywhere."""
        self.left -= len(self.work.rooms)
        spec, able, rejected = search.job.spec, list[Able](), list[Candidate]()
        personal = False  # something stands against this job that does not against all like it
        for name, room in self.work.rooms.items():
            lower = [o for o in self._there.get(name, ()) if o.priority < spec.placement.priority]
            words = "nothing there is less important"
            if lower and not (words := unsuitable(spec, room.worker)):
                words = _objection(search, room)
                personal |= bool(words)
            if not words:
                able.append((room, self._leaving.get(name, []), lower))
            elif len(rejected) < REJECTED:
                rejected.append(Candidate(worker=name, rejected=words))
        need = spec.model.resources
        found = sorted(_by_one(need, able), key=_cheapest)
        if not found:
            self.left -= SEVERAL * len(able)
            found = sorted(_by_several(need, able), key=_cheapest)
        if not found:
            if not personal:
                self._hopeless.add(known)
            return False
        _, name, going = found[0]
        candidates = (*_weighed(search, found, [room.worker.name for room, *_ in able]), *rejected)
        self._let_go(search, name, going, candidates)
        return True

    def _let_go(
        self, search: Search, name: str, going: Sequence[There], candidates: tuple[Candidate, ...]
    ) -> None:
        job, leaving = search.job, self._leaving.setdefault(name, [])
        asked = RoomFor(tenant=job.tenant, job=job.spec.name, priority=job.spec.placement.priority)
        with_ = "" if len(going) == 1 else f", with {len(going) - 1} others there"
        for one in sorted(going, key=_liking):
            key = one.replica.key
            reason = (
                f"makes room for {asked.job} (priority {asked.priority}, its own is"
                f" {one.priority}){with_}: that fits nowhere else"
            )
            self.work.decisions.append(Release(one.replica, reason, asked, candidates))
            self.work.yielding.setdefault(key, set()).add(name)
            self.touched.add(key)
            self.gone.add(one.replica.id)
            self._there[name] = [other for other in self._there[name] if other is not one]
            leaving.append(one)
            if one.serves:
                self._serving[key] -= 1
                self._mark_last(key)
        self._hold(search, self.work.rooms[name], leaving)

    def _mark_last(self, key: JobKey) -> None:
        """After one of this job was let go."""
        if self._serving[key] != 1:
            return
        for ones in self._there.values():
            for one in ones:
                if one.serves and one.replica.key == key:
                    one.last = True
                    ones.sort(key=_liking)
                    return


def _cheapest(found: Found) -> tuple[Cost, str]:
    return found[:2]


def _by_one(need: Resources, able: Iterable[Able]) -> Iterator[Found]:
    """Where one replica is enough: the one that goes first."""
    for room, leaving, lower in able:
        free = room.memory_mib + sum(one.memory_mib for one in leaving)
        for one in lower:
            if free + one.memory_mib < need.memory_mib:
                continue
            if not need.gpu_memory_mib or _gpus_without(room, need, (*leaving, one)) is not None:
                yield _cost((one,)), room.worker.name, (one,)
                break


def _by_several(need: Resources, able: Iterable[Able]) -> Iterator[Found]:
    """Where several make room, about the fewest: those that go first, or the largest of them."""
    on_gpu = need.gpu_memory_mib > 0

    def size(one: There) -> tuple[int, int]:
        return (-one.gpu_memory_mib if on_gpu else 0, -one.memory_mib)

    for room, leaving, lower in able:

        def enough(
            going: Sequence[There], room: Room = room, leaving: Sequence[There] = leaving
        ) -> bool:
            return _gpus_without(room, need, (*leaving, *going)) is not None

        if enough(lower):
            choices = [_spared(order, enough) for order in (lower, sorted(lower, key=size))]
            going = min(choices, key=_cost)
            yield _cost(going), room.worker.name, going


def waited_for(fleet: FleetState, now: datetime) -> frozenset[JobKey]:
    """Jobs that room is being made for, or was just now: they go before others as important."""
    asked = {r.yields_to for r in fleet.replicas.values() if r.status == "releasing"}
    fresh = {key for (key, _), at in fleet.freed.items() if abs(now - at) < FREED}
    return frozenset(key for key in asked if key is not None) | fresh


def _objection(search: Search, room: Room) -> str:
    """What stands against this job there, were there room. Nobody makes room where it failed, or
    where the worker may be lost."""
    if objection := search.own_objection(room):
        return objection
    if room.worker.name in search.failures:
        return "the job failed there"
    silent = room.worker.name in search.work.seen.silent
    return "has not been heard of for a while" if silent else ""


def _weighed(search: Search, found: Sequence[Found], able: Sequence[str]) -> Iterator[Candidate]:
    """The worker where room is made, with its score for the job, and why not elsewhere."""
    best, name, _ = found[0]
    score = -search.rank(search.work.rooms[name])[0]
    yield Candidate(worker=name, score=round(score, DIGITS))
    for cost, other, _ in found[1:SCORED]:
        part = next((n for n, (a, b) in enumerate(zip(cost, best, strict=True)) if a != b), -1)
        yield Candidate(worker=other, rejected=TOO_DEAR[part].format(*cost))
    costs = {other for _, other, _ in found}
    dear = (
        "more would have to go" if best[0] == 1 else "no room even without what is less important"
    )
    for other in islice((each for each in able if each not in costs), REJECTED):
        yield Candidate(worker=other, rejected=dear)


def _gpus_without(room: Room, need: Resources, gone: Sequence[There]) -> tuple[str, ...] | None:
    """As ``Room.gpus_for``, with the memory too, as if these replicas were gone already."""
    if room.memory_mib + sum(one.memory_mib for one in gone) < need.memory_mib:
        return None
    if not need.gpu_memory_mib:
        return ()
    for gpu in room.worker.machine.gpus:
        if capable(gpu, need):
            back = sum(one.gpu_memory_mib for one in gone if gpu.id in one.gpus)
            if room.gpus_mib[gpu.id] + back >= need.gpu_memory_mib:
                return (gpu.id,)
    return None


def _spared(order: Iterable[There], enough: Callable[[Sequence[There]], bool]) -> tuple[There, ...]:
    """The first of these that are enough, without those not needed for it after all."""
    going: list[There] = []
    for one in order:
        going.append(one)
        if enough(going):
            break
    for one in sorted(going, key=_liking, reverse=True):
        rest = [other for other in going if other is not one]
        if enough(rest):
            going = rest
    return tuple(going)
