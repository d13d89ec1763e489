-- From staged events of FLEET to `workers`, `replicas` and `decisions`; what core's evolve_fleet says.

-- name: insert_decisions
INSERT INTO decisions
SELECT seq, stored_at, tenant, job, split_part(type, '.', 3), worker, replica,
    (data ->> '$.desired')::INTEGER, data ->> '$.why.policy', (data ->> '$.why.policy_version')::INTEGER, data ->> '$.why.reason',
    (data ->> '$.why.observed_registry_seq')::BIGINT, (data ->> '$.why.observed_fleet_seq')::BIGINT,
    data -> '$.why.candidates'
FROM staged
WHERE type IN ('jetfleet.replica.assigned', 'jetfleet.replica.released', 'jetfleet.job.scaled',
    'jetfleet.job.balanced', 'jetfleet.job.tried')
ORDER BY seq;

-- name: insert_trials
INSERT INTO trials
SELECT tenant, job, data ->> '$.model', data ->> '$.status', data ->> '$.reason', worker, replica,
    data ->> '$.keeps', (data ->> '$.registry_seq')::BIGINT, seq, time
FROM staged WHERE type = 'jetfleet.job.tried' ORDER BY seq;

-- name: insert_admissions
INSERT INTO admissions
SELECT worker, seq, time, data ->> '$.public_key', data ->> '$.token',
    (data ->> '$.trusted')::BOOLEAN, data ->> '$.owner', data -> '$.labels'
FROM staged WHERE type = 'jetfleet.worker.admitted' ORDER BY seq;

-- name: create_worker_changes
-- Joinings, and what was said about the session that was then the worker's last.
CREATE OR REPLACE TEMP TABLE worker_changes AS
WITH said AS (
    SELECT seq, time, worker,
        CASE type WHEN 'jetfleet.capacity.released' THEN 'draining' ELSE split_part(type, '.', 3) END AS verb,
        data ->> '$.session' AS session, data
    FROM staged WHERE type IN ('jetfleet.worker.joined', 'jetfleet.worker.draining',
        'jetfleet.worker.left', 'jetfleet.worker.lost', 'jetfleet.capacity.released')
),
placed AS (
    SELECT s.*, coalesce(
        last_value(CASE WHEN verb = 'joined' THEN s.session END IGNORE NULLS)
            OVER (PARTITION BY s.worker ORDER BY s.seq
                ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING),
        w.session) AS current_session
    FROM said s LEFT JOIN workers w ON w.worker = s.worker
)
SELECT * EXCLUDE (current_session) FROM placed
WHERE verb = 'joined' OR session IS NOT DISTINCT FROM current_session;

-- name: create_worker_rows
CREATE OR REPLACE TEMP TABLE worker_rows AS
WITH last_join AS (
    SELECT worker, max(seq) AS seq, arg_max(time, seq) AS time, arg_max(data, seq) AS data
    FROM worker_changes WHERE verb = 'joined' GROUP BY worker
),
last_change AS (
    SELECT c.worker, max(c.seq) AS seq, arg_max(c.time, c.seq) AS time, arg_max(c.verb, c.seq) AS verb,
        arg_max(coalesce(c.data ->> '$.reason', c.data ->> '$.why.reason', ''), c.seq) AS reason
    FROM worker_changes c LEFT JOIN last_join j ON j.worker = c.worker
    WHERE j.seq IS NULL OR c.seq >= j.seq
    GROUP BY c.worker
)
SELECT c.worker, c.verb AS state, j.seq AS joined_seq, j.time AS joined_at, c.seq AS changed_seq,
    c.time AS changed_at, c.reason, j.data
FROM last_change c LEFT JOIN last_join j ON j.worker = c.worker;

-- name: update_workers
UPDATE workers SET state = r.state, changed_seq = r.changed_seq, changed_at = r.changed_at,
    reason = r.reason
FROM worker_rows r WHERE r.worker = workers.worker AND r.data IS NULL;

-- name: delete_joined_workers
DELETE FROM workers USING worker_rows r WHERE r.worker = workers.worker AND r.data IS NOT NULL;

-- name: insert_workers
-- Of a worker that came with a join token, its last admission before it joined says what it may claim.
INSERT INTO workers
SELECT w.worker, state, data ->> '$.session', joined_seq, joined_at, changed_seq, changed_at, reason,
    data ->> '$.machine.hostname', (data ->> '$.machine.cpu_count')::INTEGER,
    (data ->> '$.machine.memory_mib')::BIGINT, (data ->> '$.machine.disk_free_mib')::BIGINT,
    data -> '$.machine.gpus', data ->> '$.agent_version', coalesce(a.owner, data ->> '$.owner'),
    coalesce(a.trusted, (data ->> '$.trusted')::BOOLEAN), (data ->> '$.ephemeral')::BOOLEAN,
    (data ->> '$.price_per_hour')::DOUBLE, (data ->> '$.heartbeat_s')::DOUBLE,
    json_merge_patch(data -> '$.labels', coalesce(a.labels, '{}'::JSON))
FROM (SELECT * FROM worker_rows WHERE data IS NOT NULL) w
ASOF LEFT JOIN admissions a ON a.worker = w.worker AND a.seq <= w.joined_seq
ORDER BY joined_seq;

-- name: create_lives
-- Replicas that the batch may change: assigned in it, or there and not ended before it.
CREATE OR REPLACE TEMP TABLE lives AS
WITH assigned AS (
    SELECT replica AS replica, tenant, job, worker, 'assigned' AS state,
        data ->> '$.spec.model.name' AS model, data ->> '$.spec.model.version' AS model_version,
        seq AS assigned_seq, time AS assigned_at, NULL::TIMESTAMP AS ready_at,
        NULL::TIMESTAMP AS released_at, NULL::DOUBLE AS prepare_s, 0 AS restarts,
        coalesce((data -> '$.gpus')::VARCHAR[], []) AS gpus, '' AS stage,
        '' AS reason, seq AS changed_seq
    FROM staged WHERE type = 'jetfleet.replica.assigned'
    QUALIFY row_number() OVER (PARTITION BY replica ORDER BY seq DESC) = 1
)
SELECT * FROM assigned
UNION ALL BY NAME
SELECT * EXCLUDE (ended_at) FROM replicas r
WHERE ended_at IS NULL AND replica NOT IN (SELECT replica FROM assigned) AND (
    replica IN (SELECT replica FROM staged WHERE type LIKE 'jetfleet.replica.%')
    OR worker IN (SELECT worker FROM worker_changes WHERE verb <> 'draining')
);

-- name: create_replica_changes
-- What was said about those replicas: by their own workers, and of these workers.
CREATE OR REPLACE TEMP TABLE replica_changes AS
SELECT l.replica, s.seq, s.time, split_part(s.type, '.', 3) AS verb, s.data
FROM lives l JOIN staged s ON s.replica = l.replica AND s.worker = l.worker
WHERE s.type LIKE 'jetfleet.replica.%' AND s.seq > l.assigned_seq
    AND s.type <> 'jetfleet.replica.assigned'
UNION ALL
SELECT l.replica, w.seq, w.time, 'gone', to_json({'reason':
    CASE w.verb WHEN 'joined' THEN 'the worker started anew without it'
        WHEN 'left' THEN 'the worker left' ELSE 'the worker was lost' END})
FROM lives l JOIN worker_changes w ON w.worker = l.worker
WHERE w.seq > l.assigned_seq AND (w.verb IN ('left', 'lost') OR w.verb = 'joined'
    AND NOT list_contains((w.data -> '$.replicas')::VARCHAR[], l.replica));

-- name: create_replica_rows
-- The first end counts; what was released does not come back.
CREATE OR REPLACE TEMP TABLE replica_rows AS
WITH ends AS (
    SELECT replica, min(seq) AS seq, arg_min(time, seq) AS time, arg_min(verb, seq) AS verb,
        arg_min(coalesce(data ->> '$.reason', ''), seq) AS reason
    FROM replica_changes WHERE verb IN ('stopped', 'failed', 'gone') GROUP BY replica
),
releases AS (
    SELECT c.replica, min(c.seq) AS seq, arg_min(c.time, c.seq) AS time
    FROM replica_changes c JOIN lives l ON l.replica = c.replica
        LEFT JOIN ends e ON e.replica = c.replica
    WHERE c.verb = 'released' AND l.state <> 'releasing' AND (e.seq IS NULL OR c.seq < e.seq)
    GROUP BY c.replica
),
progress AS (
    SELECT c.replica, max(c.seq) AS seq, arg_max(c.verb, c.seq) AS verb,
        arg_max(c.data ->> '$.stage', c.seq) FILTER (c.verb = 'preparing') AS stage,
        arg_max(c.time, c.seq) FILTER (c.verb = 'ready') AS ready_at,
        arg_max((c.data ->> '$.prepare_s')::DOUBLE, c.seq) FILTER (c.verb = 'ready') AS prepare_s,
        arg_max((c.data ->> '$.restarts')::INTEGER, c.seq) FILTER (c.verb = 'ready') AS restarts
    FROM replica_changes c JOIN lives l ON l.replica = c.replica
        LEFT JOIN ends e ON e.replica = c.replica LEFT JOIN releases r ON r.replica = c.replica
    WHERE c.verb IN ('preparing', 'ready') AND l.state <> 'releasing'
        AND (e.seq IS NULL OR c.seq < e.seq) AND (r.seq IS NULL OR c.seq < r.seq)
    GROUP BY c.replica
)
SELECT l.replica, l.tenant, l.job, l.worker,
    coalesce(e.verb, CASE WHEN r.seq IS NOT NULL THEN 'releasing' END, p.verb, l.state) AS state,
    l.model, l.model_version, l.assigned_seq, l.assigned_at,
    coalesce(p.ready_at, l.ready_at) AS ready_at, coalesce(l.released_at, r.time) AS released_at,
    e.time AS ended_at, coalesce(p.prepare_s, l.prepare_s) AS prepare_s,
    coalesce(p.restarts, l.restarts) AS restarts, l.gpus, coalesce(p.stage, l.stage) AS stage,
    coalesce(e.reason, l.reason) AS reason, coalesce(e.seq, r.seq, p.seq, l.changed_seq) AS changed_seq
FROM lives l LEFT JOIN ends e ON e.replica = l.replica
    LEFT JOIN releases r ON r.replica = l.replica LEFT JOIN progress p ON p.replica = l.replica;

-- name: delete_changed_replicas
DELETE FROM replicas USING lives l WHERE l.replica = replicas.replica;

-- name: insert_replicas
INSERT INTO replicas BY NAME SELECT * FROM replica_rows ORDER BY assigned_seq;
