-- From raw messages to staged events. While one batch is staged here, over a connection of its own, the
-- one before is folded; so `staged` lies in a database in memory that both connections see, twice.

-- name: create_incoming
-- Messages as they came.
CREATE TEMP TABLE incoming (seq BIGINT, stored_ns BIGINT, subject VARCHAR, raw BLOB);

-- name: create_routes
-- What the subjects of invocation events say, token by token; filled from Python, once for each.
CREATE TEMP TABLE routes (
    subject VARCHAR, verb VARCHAR, tenant VARCHAR, job VARCHAR, class VARCHAR, worker VARCHAR
);

-- name: create_staged
-- Valid events of the batch that agree with their subjects. `verb`, and what follows it: only of
-- invocation events. `plain`: false where SQL could not decide.
CREATE TABLE staged (
    seq BIGINT, stored_at TIMESTAMP, subject VARCHAR, id VARCHAR, type VARCHAR, time TIMESTAMP,
    tenant VARCHAR, source VARCHAR, correlation VARCHAR, causation VARCHAR, trace VARCHAR,
    job VARCHAR, worker VARCHAR, data VARCHAR, verb VARCHAR, invocation UUID, replica VARCHAR,
    attempt INTEGER, run_s DOUBLE, chunks INTEGER, origin VARCHAR, stream BOOLEAN, timeout_s DOUBLE,
    expires_at TIMESTAMP, priority_class VARCHAR, idempotency_key VARCHAR, error_code VARCHAR,
    error_message VARCHAR, plain BOOLEAN
);

-- name: stage_plain
-- Validity is what core's `decode` says. That costs 8 us an event in Python, so SQL decides the plain
-- cases of large batches by itself: it extracts the fields, writes the document again as core's
-- encoder would, and compares. Equal text means: valid JSON, these keys and no others, each of its
-- type. Everything else (a hand-written event, an old version, a reference to a big payload, a subject
-- that says something else, poison) is left to Python.
INSERT INTO staged
WITH text AS (
    SELECT seq, make_timestamp(stored_ns // 1000) AS stored_at, subject, try(decode(raw)) AS body
    FROM incoming
),
parsed AS (
    SELECT seq, stored_at, subject, body, unnest(try(from_json(body, '{
        "id": "VARCHAR", "source": "VARCHAR", "type": "VARCHAR", "time": "VARCHAR",
        "tenant": "VARCHAR", "correlationid": "VARCHAR", "causationid": "VARCHAR",
        "traceparent": "VARCHAR", "data": {
            "invocation": "VARCHAR", "job": "VARCHAR", "input": "JSON", "origin": "VARCHAR",
            "stream": "JSON", "timeout_s": "JSON", "expires_at": "VARCHAR",
            "priority_class": "VARCHAR", "idempotency_key": "JSON", "queued_seq": "JSON",
            "reason": "JSON", "worker": "VARCHAR", "replica": "VARCHAR", "attempt": "JSON",
            "run_s": "JSON", "chunks": "JSON", "output": "JSON", "error": "JSON"
        }
    }')))
    FROM text
),
fields AS (
    SELECT * EXCLUDE (data, time), time AS said, unnest(data),
        type[len('jetfleet.invocation.') + 1 :] AS kind
    FROM parsed
),
written AS (
    SELECT *, concat(
        -- `compose` writes the type first, `encode` where the model has it.
        CASE WHEN starts_with(body, '{"specversion":"1.0","type"')
            THEN concat('{"specversion":"1.0","type":"', type, '","dataversion":1,"id":"', id,
                '","source":"', source, '","time":"', said, '","tenant":"', tenant, '"')
            ELSE concat('{"specversion":"1.0","id":"', id, '","source":"', source, '","type":"', type,
                '","time":"', said, '","dataversion":1,"tenant":"', tenant, '"') END,
        ',"correlationid":"' || correlationid || '"', ',"causationid":"' || causationid || '"',
        ',"traceparent":"' || traceparent || '"', ',"data":'
    ) AS head,
    CASE WHEN kind = 'queued' THEN concat(
            '{"invocation":"', invocation, '","job":"', job, '"',
            CASE WHEN input IS NOT NULL THEN ',"input":' || input
                WHEN contains(body, ',"input":null') THEN ',"input":null' END,
            ',"origin":"', origin, '","stream":', stream, ',"timeout_s":', timeout_s,
            ',"expires_at":"', expires_at, '","priority_class":"', priority_class, '"',
            ',"idempotency_key":' || idempotency_key, '}')
        WHEN kind = 'started' THEN concat(
            '{"invocation":"', invocation, '","job":"', job, '","worker":"', worker,
            '","replica":"', replica, '","attempt":', attempt, ',"run_s":' || run_s, '}')
        WHEN kind = 'cancel_requested' THEN concat(
            '{"invocation":"', invocation, '","job":"', job, '","queued_seq":', queued_seq,
            ',"origin":"', origin, '","reason":', reason, '}')
        ELSE concat(
            '{"invocation":"', invocation, '","job":"', job, '"', ',"worker":"' || worker || '"',
            ',"replica":"' || replica || '"', ',"attempt":', attempt, ',"run_s":' || run_s,
            ',"chunks":', chunks,
            CASE kind WHEN 'completed' THEN CASE WHEN output IS NOT NULL THEN ',"output":' || output
                    WHEN contains(body, ',"output":null') THEN ',"output":null' END
                WHEN 'failed' THEN ',"error":' || error
                WHEN 'cancelled' THEN ',"reason":' || reason
                WHEN 'expired' THEN ',"expires_at":"' || expires_at || '"' END, '}')
        END AS data
    FROM fields
),
typed AS (
    SELECT *,
        try_cast(invocation AS UUID) AS uuid,
        try_cast(said AS TIMESTAMP) AS time,
        try_cast(expires_at AS TIMESTAMP) AS expires,
        try_cast(attempt AS INTEGER) AS attempts,
        try_cast(run_s AS DOUBLE) AS ran,
        try_cast(chunks AS INTEGER) AS chunk_count,
        try_cast(timeout_s AS DOUBLE) AS timeout,
        CASE kind WHEN 'queued' THEN input WHEN 'completed' THEN output END AS payload,
        CASE WHEN kind IN ('queued', 'started') THEN kind WHEN kind = 'cancel_requested' THEN 'cancel'
            WHEN type LIKE 'jetfleet.invocation.%' THEN 'done' ELSE 'other' END AS verb,
        CASE kind WHEN 'failed' THEN try(from_json(error, '{
            "code": "JSON", "message": "JSON", "detail": "JSON", "history": "JSON"}')) END AS failure
    FROM written
)
SELECT t.seq, t.stored_at, t.subject, id, type, time, t.tenant, source, correlationid, causationid,
    traceparent, t.job, t.worker, data, t.verb, uuid, replica, attempts, ran, chunk_count, origin,
    stream = 'true', timeout, expires, priority_class, idempotency_key ->> '$', failure.code ->> '$',
    failure.message ->> '$',
    coalesce(r.verb = t.verb AND r.tenant = t.tenant AND r.job = t.job
        AND (r.class IS NULL OR r.class = t.priority_class)
        AND (r.worker IS NULL OR t.worker IS NULL OR r.worker = t.worker)
        AND body = concat(head, data, '}') AND source <> ''
        AND time IS NOT NULL AND regexp_full_match(said, '[12]\d{3}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{6})?Z')
        AND uuid::VARCHAR = invocation
        AND (traceparent IS NULL OR regexp_full_match(
            traceparent, '[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}'))
        AND (origin IS NULL OR regexp_full_match(origin, '[A-Za-z0-9_-]{1,64}'))
        AND (replica IS NULL OR regexp_full_match(replica, '[A-Za-z0-9_-]{1,64}'))
        AND CASE kind
            WHEN 'queued' THEN stream IN ('true', 'false') AND timeout > 0 AND isfinite(timeout)
                AND regexp_full_match(expires_at, '[12]\d{3}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{6})?Z')
                AND expires IS NOT NULL AND coalesce(idempotency_key LIKE '"%', true)
            WHEN 'started' THEN attempts > 0 AND run_s IS NOT NULL
            WHEN 'cancel_requested' THEN reason LIKE '"%' AND try_cast(queued_seq AS BIGINT) > 0
                AND regexp_full_match(queued_seq, '\d+')
            WHEN 'completed' THEN true
            WHEN 'cancelled' THEN reason LIKE '"%'
            WHEN 'expired' THEN expires IS NOT NULL
                AND regexp_full_match(expires_at, '[12]\d{3}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{6})?Z')
            WHEN 'failed' THEN failure.history = '[]' AND failure.message LIKE '"%'
                AND failure.detail LIKE '"%'
                AND failure.code IN ('"model_error"', '"model_exited"', '"timeout"', '"invalid_output"',
                    '"invalid_input"', '"attempts_exhausted"')
                AND error::VARCHAR = concat('{"code":', failure.code, ',"message":', failure.message,
                    ',"detail":', failure.detail, ',"history":[]}')
            ELSE false END
        AND (t.verb IN ('queued', 'cancel') OR attempts >= 0 AND regexp_full_match(attempt, '\d+'))
        AND (t.verb <> 'done' OR chunk_count >= 0 AND regexp_full_match(chunks, '\d+'))
        AND (run_s IS NULL OR ran BETWEEN 0 AND 1e9)
        -- DuckDB nests without limit, and Python's reader not; nor does that read all integers. So what
        -- has many brackets or many digits in a row is not plain; short text cannot have them. And
        -- DuckDB reads nan and inf however they are written.
        AND (payload IS NULL OR NOT regexp_matches(
            payload, '(?i)(^|[\[:,-])(nan|inf|infinity)($|[\],}])'))
        AND (payload IS NULL OR strlen(payload) <= 128
            OR 2 * strlen(payload) - strlen(replace(payload, '[', '')) - strlen(replace(payload, '{', ''))
                <= 100 AND NOT regexp_matches(payload, '\d{250}')),
        false) AS plain
FROM typed t LEFT JOIN routes r ON r.subject = t.subject;

-- name: undecided
DELETE FROM staged WHERE NOT plain RETURNING seq;

-- name: clear_incoming
TRUNCATE incoming;

-- name: clear_staged
TRUNCATE staged;

-- name: clear_routes
TRUNCATE routes;
