"""Commands that show and change what there is: ps, query, model, job."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jetfleet.commands.common import State, command, connected
from jetfleet.commands.output import note
from jetfleet.errors import JobNotFound, ModelNotFound

if TYPE_CHECKING:
    from jetfleet.client import Client
    from jetfleet.registry import Change

Job = Annotated[str, typer.Argument(help="Name of the job.")]


def register(app: typer.Typer) -> None:
    command(app, "ps")(ps)
    command(app, "query")(query)
    families: dict[str, tuple[str, dict[str, Any]]] = {
        "model": ("Models.", {"list": model_list, "show": model_show}),
        "job": (
            "Inference jobs.",
            {
                "list": job_list,
                "show": job_show,
                "enable": job_enable,
                "disable": job_disable,
                "delete": job_delete,
            },
        ),
    }
    for name, (text, functions) in families.items():
        family = typer.Typer(name=name, help=text, no_args_is_help=True)
        for verb, function in functions.items():
            command(family, verb)(function)
        app.add_typer(family, name=name)


async def ps(state: State) -> None:
    """Jobs: replicas ready and wanted, queue, oldest wait, last failure, what is waited for."""
    async with connected(state) as client:
        rows = await client.query("ps", tenant=client.settings.tenant)
        waits = await _waits(client, rows.dicts())
        state.output.table(
            [*rows.columns, "waits_for"],
            [[*row, each] for row, each in zip(rows.rows, waits, strict=True)],
            empty="no jobs yet; `jetfleet apply FILE.yaml`",
        )


async def _waits(client: Client, rows: list[dict[str, Any]]) -> list[str | None]:
    """Of each job with something queued and no replica ready, what that waits for; of one that has
    fewer replicas than it wants, why."""
    if not any(_lacks(row) for row in rows):
        return [None] * len(rows)
    from jetfleet.causes import READY
    from jetfleet.clock import utc_now
    from jetfleet.evidence import Watch

    watch, now, found = Watch(client), utc_now(), list[str | None]()
    for row in rows:
        cause = None
        if row["queued"] and not row["ready"]:
            since = now - timedelta(seconds=row["oldest_wait_s"] or 0)
            cause = await watch.waits_for(row["job"], since)
        elif _lacks(row):
            cause = await watch.lacks(row["job"])
        found.append(None if cause is None or cause is READY else cause.text)
    return found


def _lacks(row: dict[str, Any]) -> bool:
    """Whether a row of ``ps`` asks for a reason."""
    return (
        bool(row["queued"] and not row["ready"]) or row["ready"] + row["preparing"] < row["wanted"]
    )


async def query(
    state: State, sql: Annotated[str, typer.Argument(help="A SELECT over the projections.")]
) -> None:
    """Ask the projections in SQL (DuckDB, read-only)."""
    async with connected(state) as client:
        rows = await client.sql(sql)
        state.output.table(rows.columns, rows.rows, empty="no rows")
        if rows.truncated:
            note("there are more rows; ask for fewer with LIMIT or an aggregate")


async def model_list(state: State) -> None:
    """Every version of every model."""
    async with connected(state) as client:
        models = client.registry.models(client.settings.tenant)
        state.output.table(
            ("model", "version", "contract", "runtime", "runs", "description"),
            [
                (
                    m.name,
                    m.version,
                    m.contract.value,
                    m.runtime.value,
                    m.function or m.image or " ".join(m.command or ()),
                    m.description,
                )
                for m in models
            ],
            empty="no models yet; `jetfleet apply FILE.yaml`",
        )


async def model_show(
    state: State, model: Annotated[str, typer.Argument(help="name, or name:version.")]
) -> None:
    """One model version (the newest unless one is named)."""
    name, _, version = model.partition(":")
    async with connected(state) as client:
        found = client.registry.model(client.settings.tenant, name, version or None)
        if found is None:
            raise ModelNotFound(f"there is no model {model!r}; `jetfleet model list` shows them")
        state.output.document(found.model_dump(mode="json", exclude_none=True))


async def job_list(state: State) -> None:
    """Every job and its settings."""
    async with connected(state) as client:
        state.output.table(
            ("job", "model", "enabled", "replicas", "concurrency", "timeout_s", "queue_ttl_s"),
            [
                (
                    job.spec.name,
                    job.spec.model.ref,
                    job.enabled,
                    job.spec.replicas,
                    job.spec.concurrency,
                    job.spec.timeout_s,
                    job.spec.queue_ttl_s,
                )
                for job in client.registry.jobs(client.settings.tenant)
            ],
            empty="no jobs yet; `jetfleet apply FILE.yaml`",
        )


async def job_show(state: State, job: Job) -> None:
    """One job in full."""
    from jetfleet import verdicts

    async with connected(state) as client:
        found = client.registry.job(client.settings.tenant, job)
        if found is None:
            raise JobNotFound(f"there is no job {job!r}; `jetfleet job list` shows them")
        ended = await verdicts.ask(client.connection, found)
        tried = {"trial_state": "unverified"}
        if ended is not None:
            said = ended.data
            tried = {"trial_state": said.status, "trial_reason": said.reason, "serves": said.keeps}
        state.output.document(
            {
                **found.spec.model_dump(mode="json", exclude_none=True),
                "enabled": found.enabled,
                "created_at": found.created_at,
                **{name: value for name, value in tried.items() if value},
            }
        )


async def job_enable(state: State, job: Job) -> None:
    """Accept invocations again."""
    async with connected(state) as client:
        _say(state, job, await client.enable_job(job), "enabled")


async def job_disable(
    state: State,
    job: Job,
    reason: Annotated[str, typer.Option(help="Kept with the event.")] = "",
) -> None:
    """Refuse new invocations; what is queued is still served."""
    async with connected(state) as client:
        _say(state, job, await client.disable_job(job, reason), "disabled")


async def job_delete(state: State, job: Job) -> None:
    """Remove a job; what is queued is cancelled, its replicas are released."""
    async with connected(state) as client:
        _say(state, job, await client.delete_job(job))


def _say(state: State, job: str, change: Change, updated: str | None = None) -> None:
    if state.as_json:
        state.output.document({"job": job, "change": change.kind, "fields": list(change.fields)})
    else:
        done = updated if updated is not None and change.kind == "updated" else change.kind
        state.output.text(f"job {job} {done}")
