-- The named queries that the service answers (`jf.ask.query`, {"name": ..., "params": {...}}).
-- `fresh: no`: answered at once from what is folded, for callers that read the log's tail themselves;
-- all others wait until everything that was stored before the question is folded.

-- name: models
-- Model versions, newest first.
-- params: tenant VARCHAR, limit BIGINT = 1000
SELECT tenant, model, version, contract, runtime, description, visibility, registered_at,
    registered_seq, spec
FROM models WHERE $tenant IS NULL OR tenant = $tenant
ORDER BY registered_seq DESC LIMIT $limit;

-- name: jobs
-- Jobs that are there, newest first.
-- params: tenant VARCHAR, limit BIGINT = 1000
SELECT tenant, job, model, model_version, enabled, min_replicas, max_replicas, replicas, concurrency,
    priority_class, created_at, updated_at, created_seq, updated_seq, spec
FROM jobs WHERE $tenant IS NULL OR tenant = $tenant
ORDER BY created_seq DESC LIMIT $limit;

-- name: ps
-- Jobs at a glance: replicas ready of those wanted, what waits, what runs, how long the oldest waits,
-- why the last replica that failed did, unless one is ready since, and what became of the trial of
-- its model: verified, failed, or unverified (no example, not tried yet, or opted out).
-- params: tenant VARCHAR
WITH work AS (
    SELECT tenant, job, count(*) FILTER (state = 'queued') AS queued,
        count(*) FILTER (state = 'started') AS running,
        min(queued_stored_at) FILTER (state = 'queued') AS oldest
    FROM invocations WHERE outcome IS NULL GROUP BY tenant, job
),
serving AS (
    SELECT tenant, job, count(*) FILTER (state = 'ready') AS ready,
        count(*) FILTER (state IN ('assigned', 'preparing')) AS preparing
    FROM live_replicas GROUP BY tenant, job
),
failing AS (
    SELECT tenant, job, arg_max(reason, changed_seq) FILTER (state = 'failed') AS failure,
        max(changed_seq) FILTER (state = 'failed') AS failed, max(changed_seq) FILTER (state = 'ready') AS readied
    FROM replicas GROUP BY tenant, job
),
-- Of jobs whose number follows the work: what was decided last, if of this job and no former one.
sized AS (
    SELECT tenant, job, arg_max(desired, seq) AS desired, arg_max(observed_registry_seq, seq) AS registry_seq
    FROM decisions WHERE decision = 'scaled' GROUP BY tenant, job
),
tried AS (
    SELECT tenant, job, model, arg_max(state, seq) AS state, arg_max(registry_seq, seq) AS registry_seq
    FROM trials GROUP BY tenant, job, model
)
SELECT j.job, j.model || ':' || j.model_version AS model, j.enabled, coalesce(s.ready, 0) AS ready,
    CASE WHEN j.spec ->> '$.scaling.policy' <> 'static' AND d.registry_seq >= j.created_seq
        THEN greatest(j.min_replicas, least(j.max_replicas, d.desired)) ELSE j.replicas END AS wanted,
    coalesce(s.preparing, 0) AS preparing, coalesce(w.queued, 0) AS queued,
    coalesce(w.running, 0) AS running,
    greatest(0, (epoch_us(now()) - epoch_us(w.oldest)) / 1e6) AS oldest_wait_s,
    CASE WHEN f.failed > coalesce(f.readied, 0) THEN f.failure END AS failure,
    CASE WHEN t.registry_seq >= j.created_seq THEN t.state ELSE 'unverified' END AS trial
FROM jobs j LEFT JOIN work w ON w.tenant = j.tenant AND w.job = j.job
    LEFT JOIN serving s ON s.tenant = j.tenant AND s.job = j.job
    LEFT JOIN failing f ON f.tenant = j.tenant AND f.job = j.job
    LEFT JOIN sized d ON d.tenant = j.tenant AND d.job = j.job
    LEFT JOIN tried t ON t.tenant = j.tenant AND t.job = j.job
        AND t.model = j.model || ':' || j.model_version
WHERE $tenant IS NULL OR j.tenant = $tenant
ORDER BY j.job;

-- name: summary
-- Per job: how many invocations, their outcomes, what is in flight, p50 and p95 of wait and run.
-- params: tenant VARCHAR, job VARCHAR
SELECT * FROM job_summary
WHERE ($tenant IS NULL OR tenant = $tenant) AND ($job IS NULL OR job = $job)
ORDER BY tenant, job;

-- name: workers
-- All workers that ever joined, last joined first. `before`: a position in FLEET, as in `joined_seq`.
-- params: before BIGINT, limit BIGINT = 1000
SELECT * FROM workers WHERE $before IS NULL OR joined_seq < $before
ORDER BY joined_seq DESC LIMIT $limit;

-- name: worker
-- One worker.
-- params: name! VARCHAR
SELECT * FROM workers WHERE worker = $name;

-- name: replicas
-- Replicas, past ones included, newest first.
-- params: job VARCHAR, worker VARCHAR, tenant VARCHAR, limit BIGINT = 100
SELECT * FROM replicas
WHERE ($job IS NULL OR job = $job) AND ($worker IS NULL OR worker = $worker)
    AND ($tenant IS NULL OR tenant = $tenant)
ORDER BY assigned_seq DESC LIMIT $limit;

-- name: invocations
-- Invocations, newest first. `model`: name, or name:version; `before`, `after`: an invocation's id.
-- params: tenant VARCHAR, job VARCHAR, state VARCHAR, worker VARCHAR, model VARCHAR, before UUID, after UUID, limit BIGINT = 100
WITH wanted AS (
    SELECT * FROM invocations
    WHERE ($tenant IS NULL OR tenant = $tenant) AND ($job IS NULL OR job = $job)
        AND ($state IS NULL OR state = $state) AND ($worker IS NULL OR worker = $worker)
        AND ($before IS NULL OR queued_seq < (
            SELECT min(queued_seq) FROM invocations WHERE invocation = $before::UUID))
        AND ($after IS NULL OR queued_seq > (
            SELECT max(queued_seq) FROM invocations WHERE invocation = $after::UUID))
),
of_model AS (
    SELECT w.* FROM wanted w ASOF JOIN job_models m
        ON m.tenant = w.tenant AND m.job = w.job AND m.since <= w.queued_stored_at
    WHERE $model IS NOT NULL AND (m.model = $model OR m.model || ':' || m.model_version = $model)
),
-- Branches that a constant switches off, so that the plain list reads the columns of one page alone.
page AS (
    (SELECT * FROM wanted WHERE $model IS NULL AND ($after IS NULL OR $before IS NOT NULL)
        ORDER BY queued_seq DESC LIMIT $limit)
    UNION ALL
    (SELECT * FROM wanted WHERE $model IS NULL AND $after IS NOT NULL AND $before IS NULL
        ORDER BY queued_seq LIMIT $limit)
    UNION ALL
    (SELECT * FROM of_model WHERE $after IS NULL OR $before IS NOT NULL
        ORDER BY queued_seq DESC LIMIT $limit)
    UNION ALL
    (SELECT * FROM of_model WHERE $after IS NOT NULL AND $before IS NULL
        ORDER BY queued_seq LIMIT $limit)
)
SELECT p.invocation, p.tenant, p.job, m.model, m.model_version, p.state, p.worker, p.replica,
    p.attempts, p.queued_at, p.started_at, p.finished_at, p.wait_s, p.run_s, p.error_code,
    p.error_message, p.origin, p.stream, p.priority_class, p.superseded, p.queued_seq
FROM page p ASOF LEFT JOIN job_models m
    ON m.tenant = p.tenant AND m.job = p.job AND m.since <= p.queued_stored_at
ORDER BY p.queued_seq DESC;

-- name: invocation
-- One invocation: everything about it, with its outcome event whole.
-- fresh: no
-- params: invocation! UUID
SELECT i.* EXCLUDE (outcome), i.outcome AS outcome_type,
    (SELECT arg_max(model, since) FROM job_models m
        WHERE m.tenant = i.tenant AND m.job = i.job AND since <= i.queued_stored_at) AS model,
    (SELECT arg_max(model_version, since) FROM job_models m
        WHERE m.tenant = i.tenant AND m.job = i.job AND since <= i.queued_stored_at) AS model_version,
    CASE WHEN e.id IS NOT NULL THEN concat(
        '{"specversion":"1.0","id":', to_json(e.id), ',"source":', to_json(e.source), ',"type":',
        to_json(e.type), ',"time":"', strftime(e.time, '%Y-%m-%dT%H:%M:%S.%fZ'),
        '","dataversion":1,"tenant":', to_json(e.tenant), ',"correlationid":' || to_json(e.correlation),
        ',"causationid":' || to_json(e.causation), ',"traceparent":' || to_json(e.trace),
        ',"data":', e.data, '}')::JSON END AS outcome
FROM (SELECT * FROM invocations WHERE invocation = $invocation::UUID) i
LEFT JOIN (
    SELECT * FROM events WHERE stream = 'INVOCATIONS' AND invocation = $invocation::UUID
) e ON e.seq = i.finished_seq
ORDER BY i.queued_seq LIMIT 1;

-- name: invocation_events
-- Every event of an invocation, oldest first.
-- params: invocation! UUID
SELECT seq, stored_at, id, type, time, source, worker, causation, trace, data
FROM events WHERE stream = 'INVOCATIONS' AND invocation = $invocation::UUID ORDER BY seq;

-- name: events
-- Events, newest first; with `after` alone, oldest first from there. Give a stream to page through.
-- params: stream VARCHAR, type VARCHAR, tenant VARCHAR, job VARCHAR, worker VARCHAR, before BIGINT, after BIGINT, limit BIGINT = 100
WITH wanted AS (
    SELECT * FROM events
    WHERE ($stream IS NULL OR stream = $stream) AND ($tenant IS NULL OR tenant = $tenant)
        AND ($type IS NULL OR type = $type OR suffix(type, '.' || $type))
        AND ($job IS NULL OR job = $job) AND ($worker IS NULL OR worker = $worker)
        AND ($before IS NULL OR seq < $before) AND ($after IS NULL OR seq > $after)
)
(SELECT * FROM wanted WHERE $after IS NULL OR $before IS NOT NULL
    ORDER BY seq DESC, stream LIMIT $limit)
UNION ALL
(SELECT * FROM wanted WHERE $after IS NOT NULL AND $before IS NULL
    ORDER BY seq, stream LIMIT $limit);

-- name: decisions
-- What was decided and why, newest first. `before`, `after`: positions in FLEET.
-- params: job VARCHAR, worker VARCHAR, tenant VARCHAR, before BIGINT, after BIGINT, limit BIGINT = 100
SELECT * FROM decisions
WHERE ($job IS NULL OR job = $job) AND ($worker IS NULL OR worker = $worker)
    AND ($tenant IS NULL OR tenant = $tenant)
    AND ($before IS NULL OR seq < $before) AND ($after IS NULL OR seq > $after)
ORDER BY seq DESC LIMIT $limit;

-- name: dead
-- Messages that were set aside, newest first.
-- params: stream VARCHAR, before BIGINT, limit BIGINT = 100
SELECT stream, seq, stored_at, subject, reason, size, body FROM dead
WHERE ($stream IS NULL OR stream = $stream) AND ($before IS NULL OR seq < $before)
ORDER BY stored_at DESC, seq DESC LIMIT $limit;

-- name: positions
-- How far each stream is folded, and how many of its messages were set aside.
SELECT stream, seq, CASE WHEN seq > 0 THEN make_timestamp(stored_ns // 1000) END AS stored_at,
    (SELECT count(*) FROM dead d WHERE d.stream = c.stream) AS dead
FROM checkpoint c ORDER BY stream;
