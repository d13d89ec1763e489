"""Why a job or a worker is as it is; see ``jetfleet.explain``. No clock, no I/O."""

from __future__ import annotations

from dataclasses import replace

from jetfleet.catalog import JobKey, JobState
from jetfleet.causes import (
    READY,
    Cause,
    Queue,
    Seen,
    busy_slots,
    duration,
    ready_replicas,
    shortage,
    silence,
    slots_told,
    waits_for,
)
from jetfleet.causes_placed import thresholds_in_words
from jetfleet.explain import Explanation, shown
from jetfleet.fleet import ReplicaState
from jetfleet.policies import placement_asked, trials
from jetfleet.policies.placement import Observation
from jetfleet.scaling_specs import StaticScaling
from jetfleet.story import Story
from jetfleet.trials import failed_words

# -- jobs


def explain_job(story: Story, key: JobKey, seen: Seen) -> Explanation:
    """``story``: of this job."""
    job = story.registry.jobs.get(key)
    state = "deleted" if job is None else "enabled" if job.enabled else "disabled"
    cause = job_cause(story, key, seen)
    return Explanation("job", key[1], state, cause, seen.now, timeline=shown([*story.entries]))


def job_cause(story: Story, key: JobKey, seen: Seen) -> Cause:
    """What the job does, or what its invocations wait for."""
    queue = seen.queue or Queue(0, 0)
    # The two are not counted in the same moment.
    waiting = max(0, queue.unfinished - (queue.running or 0))
    cause = waits_for(story, key, seen, queue.oldest_at if waiting else None)
    job, closed = story.registry.jobs.get(key), story.closed.get(key)
    if job is None:
        return cause
    if cause is READY:
        cause = _serving(story, job, seen, waiting)
    details = [f"{waiting} waiting, {queue.running or 0} running"] if queue.unfinished else []
    if not job.enabled and closed is not None:
        off = f"it takes no new invocations: {closed.text}"
        if not queue.unfinished:
            return Cause("job_disabled", off, closed.at)
        details.append(f"{off} {duration(seen.now - closed.at)} ago; what is queued is served")
    decision = story.scaled.get(key)
    if decision is not None and not isinstance(job.spec.scaling, StaticScaling):
        ago, why = duration(seen.now - decision.at), decision.why
        by = "" if why is None else f" by {why.policy}: {why.reason}"
        details.append(f"{decision.text} {ago} ago{by}")
    if (line := _trial_line(story, job)) and cause.code != "trial_failed":
        details.append(line)
    return replace(cause, details=(*details, *cause.details))


def _trial_line(story: Story, job: JobState) -> str:
    """How far the trial of its model is, while that keeps it from serving; empty: it does not."""
    trial = trials.gate(story.fleet, job)
    if trial is None:
        return ""
    model, earlier = job.spec.model.ref, trials.before(story.fleet, job)
    goes_on = "" if earlier is None else f"; {earlier.spec.model.ref} serves on"
    if trial.status == "failed":
        return failed_words(model, trial.worker, trial.reason) + goes_on
    return f"{model} serves once its example input has passed on a trusted worker{goes_on}"


def _serving(story: Story, job: JobState, seen: Seen, waiting: int) -> Cause:
    key = (job.tenant, job.spec.name)
    ready, wanted = ready_replicas(story, key), placement_asked.wanted(_observation(story), job)
    busy, slots, names = busy_slots(story, key, seen)
    text = (
        f"{len(ready)} of {wanted} replicas are ready; {busy} of {slots} slots are busy on {names}"
    )
    details: tuple[str, ...] = ()
    if (short := further_replica(story, job, seen)) is not None:
        details = (short.text, *short.details)
    balanced = story.balanced.get(key)
    if balanced is not None and (thresholds := thresholds_in_words(balanced)):
        details = (*details, thresholds)
    code = "serving" if waiting or busy else "idle"
    return Cause(code, text, details=details)


def further_replica(story: Story, job: JobState, seen: Seen) -> Cause | None:
    """Why a job has fewer replicas than it wants; None: it has as many."""
    there, wanted = placement_asked.staying(story.fleet, job), placement_asked.wanted
    if len(there) >= wanted(_observation(story), job):
        return None
    short = shortage(story, job, seen, None)
    return replace(short, text=f"no further replica: {short.text}")


def _observation(story: Story) -> Observation:
    return Observation(story.registry, story.fleet)


# -- workers


def explain_worker(story: Story, worker: str, seen: Seen) -> Explanation:
    """``story``: of this worker, which has joined or was let in."""
    state = story.fleet.workers.get(worker)
    status = "admitted" if state is None else state.status
    cause = worker_cause(story, worker, seen)
    return Explanation("worker", worker, status, cause, seen.now, timeline=shown([*story.entries]))


def worker_cause(story: Story, worker: str, seen: Seen) -> Cause:
    """What the worker does, or why it does nothing."""
    state, said = story.fleet.workers.get(worker), story.workers[worker]
    has = [r for r in story.fleet.replicas.values() if r.worker == worker]
    details = tuple(_replica_words(story, replica, seen) for replica in has)
    if state is None:
        return Cause("admitted", "it was let in with a join token and has not joined", said.at)
    if state.status != "joined":
        return Cause(state.status, said.text, said.at, details)
    if (quiet := silence(story, seen, worker)) is not None:
        return replace(quiet, details=details)
    if has:
        count = "1 replica" if len(has) == 1 else f"{len(has)} replicas"
        return Cause("serving", f"it has {count}", details=details)
    passed = _passed_over(story, worker, seen)
    if not passed:
        return Cause("idle", "no job wants more replicas than it has")
    return Cause("idle", "jobs want replicas, and none is placed on it", details=passed)


def _replica_words(story: Story, replica: ReplicaState, seen: Seen) -> str:
    text = f"{replica.job}: {replica.status}"
    stage = story.stages.get(replica.id)
    if stage is not None:
        doing = f" ({stage.text})" if stage.text else ""
        text += f"{doing} for {duration(seen.now - stage.at)}"
    if slots_told(seen, replica) is None:
        return text  # its worker has said nothing since it is ready
    heard = (seen.heard or {}).get(replica.worker)
    for load in heard.heartbeat.data.jobs if heard is not None else ():
        if (load.tenant, load.job) == replica.key:
            text += f", {load.running} of {load.slots} slots busy"
    return text


def _passed_over(story: Story, worker: str, seen: Seen) -> tuple[str, ...]:
    """What placement thinks of it for each job that lacks replicas."""
    seen_by, found = _observation(story), list[str]()
    for key, job in story.registry.jobs.items():
        if len(placement_asked.staying(story.fleet, job)) >= placement_asked.wanted(seen_by, job):
            continue
        objection = placement_asked.objections(seen_by, job, seen.now).get(worker, "")
        found.append(f"{key[1]}: {objection or 'there is room for it'}")
    return tuple(found)
