-- The tables and views of the projections. Everything in here is public: user SQL may read all of it.
--
-- Each table depends on one stream alone, and on nothing but its messages: no clock, no chance, no
-- order of arrival between streams. So deleting the file and reading the log again gives the same
-- rows. Tables have no primary keys: without them, batches are folded 5 to 25 times faster.
--
-- Times: `stored_at` is the broker's clock, every other time is the clock of whoever says so. All
-- are UTC. Sequences are positions in the stream that the comment of the table names.

-- Any valid event that agrees with its subject, from any stream. `data` is what happened.
CREATE TABLE events (
    stream VARCHAR NOT NULL,
    seq BIGINT NOT NULL,
    stored_at TIMESTAMP NOT NULL,
    subject VARCHAR NOT NULL,
    id VARCHAR NOT NULL,
    type VARCHAR NOT NULL,
    time TIMESTAMP NOT NULL,
    tenant VARCHAR NOT NULL,
    source VARCHAR NOT NULL,
    correlation VARCHAR,
    causation VARCHAR,
    trace VARCHAR,
    invocation UUID,
    job VARCHAR,
    worker VARCHAR,
    data JSON NOT NULL
);

-- Messages that are no events, contradict their subject, or speak of an invocation that was never
-- queued there: set aside, counted, never obeyed. `body` is cut at 64 KiB; the log has all of it.
CREATE TABLE dead (
    stream VARCHAR NOT NULL,
    seq BIGINT NOT NULL,
    stored_at TIMESTAMP NOT NULL,
    subject VARCHAR NOT NULL,
    reason VARCHAR NOT NULL,
    size BIGINT NOT NULL,
    body BLOB NOT NULL
);

-- Where each stream was read up to; written in the transaction that writes the rows. `stored_ns` is
-- the broker's time of that message: it tells whether the log is still the one that was read.
CREATE TABLE checkpoint (
    stream VARCHAR NOT NULL,
    seq BIGINT NOT NULL,
    stored_ns BIGINT NOT NULL
);

-- REGISTRY: model versions.
CREATE TABLE models (
    tenant VARCHAR NOT NULL,
    model VARCHAR NOT NULL,
    version VARCHAR NOT NULL,
    contract VARCHAR NOT NULL,
    runtime VARCHAR NOT NULL,
    description VARCHAR NOT NULL,
    visibility VARCHAR NOT NULL,
    registered_seq BIGINT NOT NULL,
    registered_at TIMESTAMP NOT NULL,
    spec JSON NOT NULL
);

-- REGISTRY: jobs that are there now. Deleted ones are in `events` only.
CREATE TABLE jobs (
    tenant VARCHAR NOT NULL,
    job VARCHAR NOT NULL,
    model VARCHAR NOT NULL,
    model_version VARCHAR NOT NULL,
    enabled BOOLEAN NOT NULL,
    min_replicas INTEGER NOT NULL,
    max_replicas INTEGER NOT NULL,
    replicas INTEGER NOT NULL, -- as declared; the least, where the number follows the work
    concurrency INTEGER NOT NULL,
    priority_class VARCHAR NOT NULL,
    created_seq BIGINT NOT NULL,
    created_at TIMESTAMP NOT NULL,
    updated_seq BIGINT NOT NULL,
    updated_at TIMESTAMP NOT NULL,
    spec JSON NOT NULL
);

-- REGISTRY: which model a job was on, from when (broker's clock), deleted jobs included.
CREATE TABLE job_models (
    tenant VARCHAR NOT NULL,
    job VARCHAR NOT NULL,
    since_seq BIGINT NOT NULL,
    since TIMESTAMP NOT NULL,
    model VARCHAR NOT NULL,
    model_version VARCHAR NOT NULL
);

-- FLEET: workers, as their last joining and what followed in that session say.
CREATE TABLE workers (
    worker VARCHAR NOT NULL,
    state VARCHAR NOT NULL, -- joined, draining, left, lost
    session VARCHAR NOT NULL,
    joined_seq BIGINT NOT NULL,
    joined_at TIMESTAMP NOT NULL,
    changed_seq BIGINT NOT NULL,
    changed_at TIMESTAMP NOT NULL,
    reason VARCHAR NOT NULL,
    hostname VARCHAR NOT NULL,
    cpu_count INTEGER NOT NULL,
    memory_mib BIGINT NOT NULL,
    disk_free_mib BIGINT NOT NULL,
    gpus JSON NOT NULL,
    agent_version VARCHAR NOT NULL,
    owner VARCHAR NOT NULL,
    trusted BOOLEAN NOT NULL,
    ephemeral BOOLEAN NOT NULL,
    price_per_hour DOUBLE NOT NULL,
    heartbeat_s DOUBLE NOT NULL,
    labels JSON NOT NULL
);

-- FLEET: who was let in with a join token, and what it is trusted with; the last of a worker counts.
CREATE TABLE admissions (
    worker VARCHAR NOT NULL,
    seq BIGINT NOT NULL,
    admitted_at TIMESTAMP NOT NULL,
    public_key VARCHAR NOT NULL,
    token VARCHAR NOT NULL,
    trusted BOOLEAN NOT NULL,
    owner VARCHAR NOT NULL,
    labels JSON NOT NULL
);

-- FLEET: replicas, past ones included.
CREATE TABLE replicas (
    replica VARCHAR NOT NULL,
    tenant VARCHAR NOT NULL,
    job VARCHAR NOT NULL,
    worker VARCHAR NOT NULL,
    state VARCHAR NOT NULL, -- assigned, preparing, ready, releasing, stopped, failed, gone
    model VARCHAR NOT NULL,
    model_version VARCHAR NOT NULL,
    assigned_seq BIGINT NOT NULL,
    assigned_at TIMESTAMP NOT NULL,
    ready_at TIMESTAMP,
    released_at TIMESTAMP,
    ended_at TIMESTAMP,
    prepare_s DOUBLE,
    restarts INTEGER NOT NULL,
    gpus VARCHAR[] NOT NULL, -- names of the GPUs that it was given: UUIDs, or indexes where there is none
    stage VARCHAR NOT NULL,
    reason VARCHAR NOT NULL, -- of the failure, or why it is gone
    changed_seq BIGINT NOT NULL
);

-- FLEET: what was decided, and why: a worker shall run a replica or let it go, or a job shall have
-- another number of replicas.
CREATE TABLE decisions (
    seq BIGINT NOT NULL,
    stored_at TIMESTAMP NOT NULL,
    tenant VARCHAR NOT NULL,
    job VARCHAR NOT NULL,
    decision VARCHAR NOT NULL, -- assigned, released, scaled, balanced, tried
    worker VARCHAR,
    replica VARCHAR,
    desired INTEGER, -- when scaled: replicas from now on
    policy VARCHAR NOT NULL,
    policy_version INTEGER NOT NULL,
    reason VARCHAR NOT NULL,
    observed_registry_seq BIGINT NOT NULL,
    observed_fleet_seq BIGINT NOT NULL,
    candidates JSON NOT NULL
);

-- FLEET: trials of jobs' models that have ended; the last of a job's present model counts.
CREATE TABLE trials (
    tenant VARCHAR NOT NULL,
    job VARCHAR NOT NULL,
    model VARCHAR NOT NULL, -- name:version
    state VARCHAR NOT NULL, -- verified, failed
    reason VARCHAR NOT NULL, -- why it failed
    worker VARCHAR NOT NULL,
    replica VARCHAR NOT NULL,
    keeps VARCHAR NOT NULL, -- name:version that serves on instead of one that failed; empty: none
    registry_seq BIGINT NOT NULL, -- registry events known when it was assigned
    seq BIGINT NOT NULL,
    tried_at TIMESTAMP NOT NULL
);

-- INVOCATIONS: each accepted invocation. The first outcome in stream order counts.
CREATE TABLE invocations (
    invocation UUID NOT NULL,
    tenant VARCHAR NOT NULL,
    job VARCHAR NOT NULL,
    state VARCHAR NOT NULL, -- queued, started, or the outcome
    outcome VARCHAR, -- completed, failed, cancelled, expired
    queued_seq BIGINT NOT NULL,
    queued_at TIMESTAMP NOT NULL,
    queued_stored_at TIMESTAMP NOT NULL,
    origin VARCHAR NOT NULL,
    stream BOOLEAN NOT NULL,
    priority_class VARCHAR NOT NULL,
    timeout_s DOUBLE NOT NULL,
    expires_at TIMESTAMP NOT NULL,
    idempotency_key VARCHAR,
    cancel_seq BIGINT, -- first request to cancel
    started_at TIMESTAMP, -- last attempt, by the worker's clock
    worker VARCHAR,
    replica VARCHAR,
    attempts INTEGER NOT NULL,
    wait_s DOUBLE, -- from queued to first started, by the broker's clock
    finished_seq BIGINT,
    finished_at TIMESTAMP,
    run_s DOUBLE,
    chunks INTEGER,
    error_code VARCHAR,
    error_message VARCHAR,
    superseded INTEGER NOT NULL, -- later outcomes
    requeued INTEGER NOT NULL, -- later queued events of the same invocation
    last_seq BIGINT NOT NULL
);

-- Each outcome that came after the one that counts.
CREATE VIEW superseded AS
SELECT e.seq, e.stored_at, e.tenant, e.job, e.invocation, split_part(e.type, '.', 3) AS outcome, e.worker,
    i.outcome AS counted, e.data
FROM events e JOIN invocations i
    ON i.invocation = e.invocation AND i.tenant = e.tenant AND i.job = e.job
WHERE e.stream = 'INVOCATIONS' AND e.seq > i.finished_seq AND e.type IN (
    'jetfleet.invocation.completed', 'jetfleet.invocation.failed',
    'jetfleet.invocation.cancelled', 'jetfleet.invocation.expired');

-- Per job: how many, how they ended, and the times in seconds.
CREATE VIEW job_summary AS
SELECT tenant, job, count(*) AS invocations,
    count(*) FILTER (state = 'completed') AS completed,
    count(*) FILTER (state = 'failed') AS failed,
    count(*) FILTER (state = 'cancelled') AS cancelled,
    count(*) FILTER (state = 'expired') AS expired,
    count(*) FILTER (outcome IS NULL) AS in_flight,
    quantile_cont(wait_s, 0.5) AS wait_p50_s, quantile_cont(wait_s, 0.95) AS wait_p95_s,
    quantile_cont(run_s, 0.5) AS run_p50_s, quantile_cont(run_s, 0.95) AS run_p95_s,
    sum(superseded)::BIGINT AS superseded
FROM invocations GROUP BY tenant, job;

-- Invocations with the model that their job was on when the log took them.
CREATE VIEW invocations_with_model AS
SELECT i.*, m.model, m.model_version
FROM invocations i ASOF LEFT JOIN job_models m
    ON m.tenant = i.tenant AND m.job = i.job AND m.since <= i.queued_stored_at;

-- How long a model runs on a type of GPU (empty: on none), over all completed invocations, by the
-- GPUs that the replica was given and what its worker called them when it last named them.
CREATE VIEW speeds AS
WITH named AS (
    SELECT worker, coalesce(gpu ->> '$.uuid', gpu ->> '$.index') AS id, arg_max(gpu ->> '$.name', seq) AS name
    FROM (
        SELECT worker, seq, unnest((data -> '$.machine.gpus')::JSON[]) AS gpu
        FROM events WHERE stream = 'FLEET' AND type = 'jetfleet.worker.joined'
    )
    GROUP BY ALL
),
kinds AS (
    SELECT r.replica, string_agg(DISTINCT n.name, ' + ' ORDER BY n.name) AS gpu
    FROM (SELECT replica, worker, unnest(gpus) AS id FROM replicas) r
        JOIN named n ON n.worker = r.worker AND n.id = r.id
    GROUP BY r.replica
)
SELECT r.tenant, r.model || ':' || r.model_version AS model, coalesce(k.gpu, '') AS gpu,
    count(*) AS runs, quantile_cont(i.run_s, 0.5) AS service_p50_s,
    round(favg(i.run_s), 6) AS service_mean_s, max(i.finished_at) AS last_seen
FROM invocations i
    JOIN replicas r ON r.replica = i.replica AND r.worker = i.worker AND r.tenant = i.tenant
    LEFT JOIN kinds k ON k.replica = r.replica
WHERE i.outcome = 'completed' AND i.run_s IS NOT NULL
GROUP BY ALL;

-- Replicas that are not gone.
CREATE VIEW live_replicas AS SELECT * EXCLUDE (ended_at) FROM replicas WHERE ended_at IS NULL;
