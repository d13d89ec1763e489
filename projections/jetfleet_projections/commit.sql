-- What the fold of every stream ends with, inside the transaction of its batch.

-- name: keep_events
INSERT INTO events
SELECT $stream, seq, stored_at, subject, id, type, time, tenant, source, correlation, causation, trace,
    invocation, job, worker, data
FROM staged ORDER BY seq;

-- name: move_checkpoint
UPDATE checkpoint SET seq = $seq, stored_ns = $stored_ns
WHERE stream = $stream AND seq = $before
RETURNING seq;
