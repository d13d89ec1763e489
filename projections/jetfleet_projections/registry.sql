-- From staged events of REGISTRY to `models`, `jobs` and `job_models`; what core's evolve_registry says.

-- name: insert_models
-- A version never changes: its first registration holds.
INSERT INTO models
SELECT tenant, data ->> '$.model.name', data ->> '$.model.version', data ->> '$.model.contract',
    data ->> '$.model.runtime', data ->> '$.model.description', data ->> '$.model.visibility',
    seq, time, data -> '$.model'
FROM staged s
WHERE type = 'jetfleet.model.registered' AND NOT EXISTS (
    SELECT 1 FROM models m WHERE m.tenant = s.tenant
        AND m.model = s.data ->> '$.model.name' AND m.version = s.data ->> '$.model.version'
)
QUALIFY row_number() OVER (
    PARTITION BY tenant, data ->> '$.model.name', data ->> '$.model.version' ORDER BY seq
) = 1;

-- name: create_job_changes
-- Job events that change something: creating a job that is not there, the rest of one that is.
CREATE OR REPLACE TEMP TABLE job_changes AS
WITH said AS (
    SELECT seq, time, stored_at, tenant, job, split_part(type, '.', 3) AS verb,
        CASE WHEN type IN ('jetfleet.job.created', 'jetfleet.job.updated')
            THEN data -> '$.job' END AS spec
    FROM staged WHERE type LIKE 'jetfleet.job.%'
),
placed AS (
    SELECT s.*, coalesce(
        last_value(CASE WHEN verb IN ('created', 'deleted') THEN verb = 'created' END IGNORE NULLS)
            OVER (PARTITION BY s.tenant, s.job ORDER BY s.seq
                ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING),
        j.created_seq IS NOT NULL) AS there
    FROM said s LEFT JOIN jobs j ON j.tenant = s.tenant AND j.job = s.job
)
SELECT * EXCLUDE (there) FROM placed WHERE there = (verb <> 'created');

-- name: insert_job_models
INSERT INTO job_models
SELECT tenant, job, seq, stored_at, spec ->> '$.model.name', spec ->> '$.model.version'
FROM job_changes WHERE spec IS NOT NULL ORDER BY seq;

-- name: create_job_rows
-- The rows of changed jobs as they are after the batch, from the life they are in now.
CREATE OR REPLACE TEMP TABLE job_rows AS
WITH ends AS (
    SELECT tenant, job, max(seq) FILTER (verb = 'deleted') AS deleted_seq,
        max(seq) FILTER (verb = 'created') AS created_seq
    FROM job_changes GROUP BY tenant, job
),
alive AS (
    SELECT c.tenant, c.job,
        arg_max(c.spec, c.seq) FILTER (c.spec IS NOT NULL) AS spec,
        arg_max(c.verb = 'enabled', c.seq) FILTER (c.verb IN ('enabled', 'disabled')) AS enabled,
        min(c.seq) FILTER (c.verb = 'created') AS created_seq,
        arg_min(c.time, c.seq) FILTER (c.verb = 'created') AS created_at,
        max(c.seq) AS updated_seq, arg_max(c.time, c.seq) AS updated_at
    FROM job_changes c JOIN ends e ON e.tenant = c.tenant AND e.job = c.job
    WHERE (e.created_seq IS NULL OR c.seq >= e.created_seq)
        AND (e.deleted_seq IS NULL OR c.seq > e.deleted_seq)
    GROUP BY c.tenant, c.job
)
SELECT a.tenant, a.job, coalesce(a.spec, j.spec) AS spec,
    coalesce(a.enabled, CASE WHEN a.created_seq IS NULL THEN j.enabled END, true) AS enabled,
    coalesce(a.created_seq, j.created_seq) AS created_seq,
    coalesce(a.created_at, j.created_at) AS created_at, a.updated_seq, a.updated_at
FROM alive a LEFT JOIN jobs j ON j.tenant = a.tenant AND j.job = a.job;

-- name: delete_changed_jobs
DELETE FROM jobs USING job_changes c WHERE c.tenant = jobs.tenant AND c.job = jobs.job;

-- name: insert_jobs
INSERT INTO jobs
SELECT tenant, job, spec ->> '$.model.name', spec ->> '$.model.version', enabled,
    (spec ->> '$.min_replicas')::INTEGER, (spec ->> '$.max_replicas')::INTEGER,
    coalesce(spec ->> '$.desired_replicas', spec ->> '$.scaling.replicas',
        spec ->> '$.min_replicas')::INTEGER,
    (spec ->> '$.concurrency')::INTEGER, spec ->> '$.priority_class',
    created_seq, created_at, updated_seq, updated_at, spec
FROM job_rows ORDER BY created_seq;
