-- From staged events of INVOCATIONS to the table `invocations`. The first queued event of an
-- invocation and the first outcome in stream order count.

-- name: create_began
-- When an attempt began that had run so many seconds; by the clock of the time given.
CREATE OR REPLACE TEMP MACRO began(time, run_s) AS time - to_microseconds(round(run_s * 1e6)::BIGINT);

-- name: create_folded
-- What the batch says of each invocation; `rid`: the row that is there already, `strays`: the first
-- word is not that it was queued.
CREATE OR REPLACE TEMP TABLE folded AS
WITH old AS (
    SELECT rowid AS rid, invocation, tenant, job, queued_seq, queued_stored_at, finished_seq
    FROM invocations WHERE invocation IN (SELECT invocation FROM staged)
),
said AS (
    SELECT s.*, o.rid, o.queued_seq AS queued_before, o.queued_stored_at,
        o.finished_seq AS finished_before
    FROM staged s LEFT JOIN old o
    ON o.invocation = s.invocation AND o.tenant = s.tenant AND o.job = s.job
),
whole AS (
    SELECT invocation, tenant, job, any_value(rid) AS rid,
        coalesce(any_value(queued_before), min(seq) FILTER (verb = 'queued')) AS queued_seq,
        coalesce(any_value(queued_stored_at), min(stored_at) FILTER (verb = 'queued'))
            AS queued_stored_at,
        coalesce(any_value(finished_before), min(seq) FILTER (verb = 'done')) AS finished_seq,
        count(*) FILTER (verb = 'done') AS outcomes,
        count(*) FILTER (verb = 'queued') AS times_queued,
        min(seq) FILTER (verb = 'cancel') AS cancel_seq,
        min(seq) AS first_seq,
        max(seq) AS last_seq
    FROM said GROUP BY invocation, tenant, job
),
starts AS (
    SELECT w.invocation, w.tenant, w.job, arg_max(began(s.time, s.run_s), s.seq) AS started_at,
        arg_max(s.worker, s.seq) AS worker, arg_max(s.replica, s.seq) AS replica,
        max(s.attempt) AS attempts, arg_min(began(s.stored_at, s.run_s), s.seq) AS first_started_at
    FROM staged s JOIN whole w
    ON w.invocation = s.invocation AND w.tenant = s.tenant AND w.job = s.job
    WHERE s.verb = 'started' AND (w.finished_seq IS NULL OR s.seq < w.finished_seq)
    GROUP BY w.invocation, w.tenant, w.job
)
SELECT w.rid, w.queued_seq, w.last_seq, w.cancel_seq, d.seq AS finished_seq,
    w.outcomes - (d.seq IS NOT NULL)::INTEGER AS superseded,
    w.times_queued - (w.rid IS NULL)::INTEGER AS requeued,
    split_part(d.type, '.', 3) AS outcome, d.time AS finished_at, d.run_s, d.chunks, d.error_code,
    d.error_message, coalesce(began(d.time, d.run_s), t.started_at) AS started_at, coalesce(d.worker, t.worker) AS worker,
    coalesce(d.replica, t.replica) AS replica, greatest(d.attempt, t.attempts) AS attempts,
    (epoch_us(coalesce(t.first_started_at, began(d.stored_at, d.run_s)))
        - epoch_us(w.queued_stored_at)) / 1e6 AS wait_s,
    w.rid IS NULL AND w.first_seq IS DISTINCT FROM w.queued_seq AS strays
FROM whole w
LEFT JOIN starts t ON t.invocation = w.invocation AND t.tenant = w.tenant AND t.job = w.job
LEFT JOIN staged d ON d.seq = w.finished_seq;

-- name: tally
-- How many invocations have a row already, how many have none, and whether the batch speaks of any
-- that was not queued.
SELECT count(rid), count(*) - count(rid), coalesce(bool_or(strays), false) FROM folded;

-- name: refuse_strays
-- An event of another job or tenant than the invocation's, or of one that nobody queued, changes
-- nothing: a worker's permissions end at its job.
DELETE FROM staged WHERE verb <> 'queued' AND NOT EXISTS (
    SELECT 1 FROM invocations i
    WHERE i.invocation = staged.invocation AND i.tenant = staged.tenant AND i.job = staged.job
) AND NOT EXISTS (
    SELECT 1 FROM staged q
    WHERE q.verb = 'queued' AND q.seq < staged.seq AND q.invocation = staged.invocation
        AND q.tenant = staged.tenant AND q.job = staged.job
) RETURNING seq;

-- name: update_invocations
UPDATE invocations i SET
    state = coalesce(i.outcome, f.outcome, CASE WHEN f.started_at IS NOT NULL THEN 'started' END, i.state),
    outcome = coalesce(i.outcome, f.outcome),
    cancel_seq = coalesce(i.cancel_seq, f.cancel_seq),
    started_at = coalesce(f.started_at, i.started_at),
    worker = coalesce(f.worker, i.worker),
    replica = coalesce(f.replica, i.replica),
    attempts = greatest(i.attempts, f.attempts),
    wait_s = coalesce(i.wait_s, f.wait_s),
    finished_seq = coalesce(i.finished_seq, f.finished_seq),
    finished_at = coalesce(i.finished_at, f.finished_at),
    run_s = coalesce(i.run_s, f.run_s),
    chunks = coalesce(i.chunks, f.chunks),
    error_code = coalesce(i.error_code, f.error_code),
    error_message = coalesce(i.error_message, f.error_message),
    superseded = i.superseded + f.superseded,
    requeued = i.requeued + f.requeued,
    last_seq = f.last_seq
FROM folded f WHERE f.rid = i.rowid;

-- name: insert_invocations
INSERT INTO invocations BY NAME
SELECT q.invocation, q.tenant, q.job,
    coalesce(f.outcome, CASE WHEN f.started_at IS NOT NULL THEN 'started' ELSE 'queued' END) AS state,
    f.outcome, f.queued_seq, q.time AS queued_at, q.stored_at AS queued_stored_at, q.origin, q.stream,
    q.priority_class, q.timeout_s, q.expires_at, q.idempotency_key, f.cancel_seq, f.started_at,
    f.worker, f.replica, coalesce(f.attempts, 0) AS attempts, f.wait_s, f.finished_seq, f.finished_at,
    f.run_s, f.chunks, f.error_code, f.error_message, f.superseded, f.requeued, f.last_seq
FROM folded f JOIN staged q ON q.seq = f.queued_seq
WHERE f.rid IS NULL ORDER BY q.seq;
