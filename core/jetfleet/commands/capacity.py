"""``jetfleet capacity``: what providers offer, what is asked of them, and what they started."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from jetfleet.commands.common import State, command, connected

if TYPE_CHECKING:
    from datetime import datetime

    from jetfleet.capacity import CapacityState

OFFERS = ("provider", "kind", "most", "in_use", "memory_mib", "gpus", "price_per_hour", "failures",
          "failure")  # fmt: skip
WORKERS = ("worker", "provider", "state", "for", "jobs", "price_per_hour", "asked_at", "handle")


def register(app: typer.Typer) -> None:
    command(app, "capacity")(capacity)


async def capacity(state: State) -> None:
    """Providers of workers, workers asked of them, and what nobody is asked for."""
    from jetfleet.evidence import Watch

    async with connected(state) as client:
        watch = Watch(client)
        now = await watch.refresh()
    found = document(watch.story.capacity, now)
    if state.as_json:
        state.output.document(found)
        return
    state.output.table(
        OFFERS, [[row[name] for name in OFFERS] for row in found["providers"]],
        empty="no provider has offered workers yet; `jetfleet provider` starts one",
    )  # fmt: skip
    if found["workers"]:
        state.output.table(
            WORKERS, [[_shown(row, name) for name in WORKERS] for row in found["workers"]]
        )
    for each in found["withheld"]:
        state.output.text(f"{each['job']}: nobody is asked for a worker: {each['reason']}")


def document(state: CapacityState, now: datetime) -> dict[str, list[dict[str, Any]]]:
    """All of it, for programs. ``now``: the broker's time."""
    return {
        "providers": [
            {
                "provider": name,
                "kind": offer.kind,
                "most": offer.most,
                "in_use": len(state.of(name)),
                **offer.shape.model_dump(),
                "boot_s": offer.boot_s,
                "lease_s": offer.lease_s,
                "idle_s": offer.idle_s,
                "failures": offer.failures,
                "failure": offer.failure,
            }
            for name, offer in sorted(state.offers.items())
        ],
        "workers": [
            {
                "worker": each.worker,
                "provider": each.provider,
                "request": each.request,
                "state": "expired" if each.coming and now >= each.expires_at else each.status,
                "for": round((now - each.changed_at).total_seconds(), 1),
                "tenant": each.tenant,
                "jobs": [job for _, job in each.jobs],
                "price_per_hour": each.shape.price_per_hour,
                "asked_at": each.asked_at,
                "expires_at": each.expires_at,
                "handle": each.handle,
                "replicas": len(each.replicas),
            }
            for each in state.workers.values()
        ],
        "withheld": [
            {"tenant": tenant, "job": job, "reason": reason, "since": since}
            for (tenant, job), (reason, since) in sorted(state.withheld.items())
        ],
    }


def _shown(row: dict[str, Any], name: str) -> Any:
    if name == "for":
        return f"{row[name]:g} s"
    return " ".join(row[name]) if name == "jobs" else row[name]
