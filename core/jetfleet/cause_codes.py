"""What can be waited for, by code. ``docs/explain.md`` lists the same."""

from __future__ import annotations

from collections.abc import Mapping

# Every cause, as it is said afterwards: "it waited 3 s: ...".
CODES: Mapping[str, str] = {
    # before there is a replica
    "job_deleted": "its job was deleted",
    "no_worker": "no worker was at work",
    "workers_away": "the workers that the job is assigned to were not at work",
    "no_fit": "no worker could take it",
    "capacity_requested": "a worker was asked for and had not joined",
    "capacity_withheld": "no provider could give a worker",
    "trial_failed": "its model had failed its trial",
    "no_trusted_worker": "no trusted worker was at work to try its model",
    "making_room": "less important replicas made room for it",
    "preempted": "a more important job had its place",
    "backing_off": "the model had failed, and its workers paused",
    "no_replicas_wanted": "the job wanted no replicas",
    "waking": "the job was at zero, to be scaled up",
    "deciding": "a worker was to be chosen",
    "no_conductor": "no conductor decided",
    "assigned": "a worker had been chosen and had not begun",
    "preparing": "a replica was being prepared",
    # while there is one
    "restarting": "its model was being started again",
    "worker_silent": "nothing was heard from its worker",
    "not_in_queue": "the queue did not have it",
    "in_queue": "its turn in the queue had not come",
    "next": "a free slot was about to take it",
    "left_to_faster": "slower workers left it to faster ones",
    "taken": "a worker had it, and had not begun",
    "redelivery": "an attempt was lost, and the queue was to hand it out again",
    # it does not wait for a start
    "running": "it ran",
    "cancelling": "it was to be cancelled",
    "expiring": "its time in the queue had ended",
    "completed": "it completed",
    "failed": "it failed",
    "cancelled": "it was cancelled",
    "expired": "it expired",
    "unreadable": "its outcome cannot be read",
    # of a job
    "serving": "its replicas served",
    "idle": "nothing was to do",
    "job_disabled": "the job was disabled",
    # of a worker
    "admitted": "it was let in, and had not joined",
    "draining": "it drained",
    "left": "it had left",
    "lost": "it was lost",
}
