"""The projector on a real broker: rebuilt, killed, cut off, and given another log."""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import new_broker
from inprocess import projecting
from jetfleet import streams
from jetfleet.client import Client
from jetfleet.connection import Connection
from jetfleet.errors import QueryUnavailable
from jetfleet.processes import children
from jetfleet.server import Broker
from jetfleet.settings import Settings
from jetfleet.setup import ensure_streams
from jetfleet.streams import FLEET, INVOCATIONS, REGISTRY
from jetfleet_projections import tables
from jetfleet_projections.projector import Projector
from jetfleet_projections.warehouse import FILE, Warehouse
from models import serving
from projections_made import Log, lives, put_all, write, writer
from waiting import until

pytestmark = pytest.mark.anyio


def made_log(seed: int, count: int = 150) -> Log:
    log, chance = Log(), random.Random(seed)
    lives(log, count, seed)
    log.model()
    for verb in ("created", "updated", "disabled", "enabled"):
        log.job(verb)
    for number in range(4):
        log.worker("joined", f"w{number}", "s1")
        log.replica("assigned", f"r{number}", f"w{number}")
        log.replica(chance.choice(["ready", "failed"]), f"r{number}", f"w{number}")
    log.put(INVOCATIONS, "jf.inv.0.default.echo.cancel", b"poison")
    return log


def ends(log: Log) -> dict[str, int]:
    return {stream: batch.seqs[-1] if batch.seqs else 0 for stream, batch in log.batches.items()}


async def reached(projector: Projector, wanted: dict[str, int]) -> None:
    await until(lambda: projector.position == wanted, f"the projector is at {wanted}")


async def stored(connection: Connection, seq: int) -> None:
    """Return when INVOCATIONS has so many."""

    async def enough() -> bool:
        info = await connection.api(f"STREAM.INFO.{INVOCATIONS}")
        return info["state"]["last_seq"] >= seq

    await until(enough, f"INVOCATIONS has {seq}")


def compare(first: Path, second: Path) -> None:
    both = [Warehouse.open(path) for path in (first, second)]
    assert tables.differences(both[0].connection, both[1].connection) == {}
    ((count,),) = both[0].connection.execute("SELECT count(*) FROM events").fetchall()
    assert count > 0
    for warehouse in both:
        warehouse.close()


async def test_rows_built_live_and_rows_built_anew_are_equal_table_by_table(
    broker: Broker, settings: Settings, tmp_path: Path
) -> None:
    log, connection = made_log(seed=1), await writer(broker)
    async with projecting(settings, tmp_path / "live.duckdb") as projector:
        batch, none = log.batches[INVOCATIONS], projector.position
        for start in range(0, len(batch), 97):
            await write(connection, batch, start, start + 97)
            await reached(projector, {**none, INVOCATIONS: min(start + 97, len(batch))})
        for stream in (REGISTRY, FLEET):
            await write(connection, log.batches[stream])
        await reached(projector, ends(log))
    async with projecting(settings, tmp_path / "anew.duckdb") as projector:
        await reached(projector, ends(log))
    compare(tmp_path / "live.duckdb", tmp_path / "anew.duckdb")
    await connection.close()


async def test_what_was_stored_before_a_question_is_folded_for_it(
    broker: Broker, settings: Settings, tmp_path: Path
) -> None:
    log, connection = Log(), await writer(broker)
    async with projecting(settings, tmp_path / "live.duckdb") as projector:
        for number in range(1, 6):
            log.queued(log.clock.new_id())
            await write(connection, log.batches[INVOCATIONS], number - 1)
            assert await projector.catch_up(10)
            assert projector.position[INVOCATIONS] == number
    await connection.close()


async def test_a_stream_that_has_aged_out_does_not_hold_questions_up(
    settings: Settings, put: Connection, tmp_path: Path
) -> None:
    log = Log()
    log.queued(log.clock.new_id())
    await write(put, log.batches[INVOCATIONS])
    await put.api(f"STREAM.PURGE.{INVOCATIONS}")
    async with projecting(settings, tmp_path / "anew.duckdb") as projector:
        assert await projector.catch_up(5)


async def test_projector_goes_on_after_the_broker_was_killed(
    tmp_path: Path,
) -> None:
    broker = new_broker(tmp_path / "broker")
    await broker.start()
    settings = Settings(nats_url=broker.url, data_dir=broker.data_dir)
    await ensure_streams(settings)
    log, connection = made_log(seed=2), await writer(broker)
    batch = log.batches[INVOCATIONS]
    async with projecting(settings, tmp_path / "live.duckdb") as projector:
        for part in range(3):
            await write(connection, batch, part * 100, part * 100 + 100)
            if part == 1:
                await reached(projector, {**projector.position, INVOCATIONS: 200})
            await stored(connection, part * 100 + 100)
            broker.kill()
            await broker.start()
            await until(lambda: connection.connected, "connected again")
        await reached(projector, {**projector.position, INVOCATIONS: 300})
    anew = Warehouse.open(tmp_path / "anew.duckdb")
    live = Warehouse.open(tmp_path / "live.duckdb")
    # The broker's times of the messages are the only thing that the made log does not know.
    anew.apply(batch.part(0, 300))
    query = "SELECT seq, id, type, data FROM events WHERE stream = 'INVOCATIONS' ORDER BY seq"
    assert live.connection.execute(query).fetchall() == anew.connection.execute(query).fetchall()
    for warehouse in (live, anew):
        warehouse.close()
    await connection.close()
    await broker.stop()


async def test_rows_of_a_log_that_is_gone_are_dropped(
    broker: Broker, settings: Settings, tmp_path: Path
) -> None:
    old, new, connection = made_log(seed=3), made_log(seed=4, count=5), await writer(broker)
    for log in (old, new):
        await put_all(connection, log)
        async with projecting(settings, tmp_path / "kept.duckdb") as projector:
            await reached(projector, ends(log))
        if log is old:
            for make in (streams.registry, streams.invocations, streams.fleet):
                await connection.api(f"STREAM.DELETE.{make()['name']}")
                await connection.api(f"STREAM.CREATE.{make()['name']}", make())
    async with projecting(settings, tmp_path / "anew.duckdb") as projector:
        await reached(projector, ends(new))
    compare(tmp_path / "kept.duckdb", tmp_path / "anew.duckdb")
    await connection.close()


# -- the real process


def start(settings: Settings) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "jetfleet", "projector", "--data-dir", str(settings.data_dir),
         "--nats-url", settings.nats_url],
        stderr=subprocess.DEVNULL,
    )  # fmt: skip


def size(settings: Settings) -> int:
    """Bytes of the warehouse's write-ahead log."""
    log = settings.data_dir / f"{FILE}.wal"
    return log.stat().st_size if log.exists() else 0


async def position(client: Client) -> int:
    """How far the projector is; -1 when it does not answer."""
    try:
        rows = await client.query("invocation", invocation=Log().clock.new_id())
    except QueryUnavailable:
        return -1
    return rows.position[INVOCATIONS]


async def at_least(client: Client, wanted: int) -> None:
    async def there() -> bool:
        return await position(client) >= wanted

    await until(there, f"the projector is at {wanted}", 40)


async def test_projector_killed_while_it_catches_up_ends_with_equal_rows(
    broker: Broker, settings: Settings, tmp_path: Path
) -> None:
    log, connection = Log(), await writer(broker)
    lives(log, 12_000, seed=5)
    batch = log.batches[INVOCATIONS]
    await write(connection, batch)
    chance, seen = random.Random(6), [0]
    while seen[-1] < batch.seqs[-1] and len(seen) < 6:
        process, before = start(settings), size(settings)
        async with asyncio.timeout(20):
            while size(settings) <= before and process.poll() is None:
                await asyncio.sleep(0.002)  # until it writes its first batch
        await asyncio.sleep(chance.uniform(0, 0.05))  # killed at any point of what follows
        process.kill()
        process.wait()
        warehouse = Warehouse.open(settings.data_dir / FILE)
        seen.append(warehouse.positions[INVOCATIONS].seq)
        ((rows,),) = warehouse.connection.execute(
            "SELECT (SELECT count(*) FROM events) + (SELECT count(*) FROM dead)"
        ).fetchall()
        assert rows == seen[-1]
        warehouse.close()
    assert seen == sorted(seen)
    assert len(seen) > 2, "it was never killed in the middle"
    async with await Client.connect(settings) as client:
        process = start(settings)
        await at_least(client, batch.seqs[-1])
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    async with projecting(settings, tmp_path / "anew.duckdb") as projector:
        await reached(projector, ends(log))
    compare(settings.data_dir / FILE, tmp_path / "anew.duckdb")
    await connection.close()


async def test_killed_projector_leaves_no_process_behind_in_the_middle_of_a_query(
    broker: Broker, settings: Settings
) -> None:
    async with await Client.connect(settings) as client:
        process = start(settings)
        await at_least(client, 0)
        asking = asyncio.create_task(client.sql(ENDLESS))
        await until(lambda: any(map(reads_a_copy, children(process.pid))), "the query runs")
        left = children(process.pid)
        process.kill()
        process.wait()
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await until(lambda: not any(map(serving.lives, left)), "none of its processes is left", 5)


ENDLESS = "WITH RECURSIVE t AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM t) SELECT count(*) FROM t"


def reads_a_copy(pid: int) -> bool:
    """Whether this process has a copy of the warehouse open, as for a user's query."""
    try:
        opened = [str(file.readlink()) for file in Path(f"/proc/{pid}/fd").iterdir()]
    except FileNotFoundError:  # a file, or all of them, closed meanwhile
        return False
    return any("/copies/" in name for name in opened)


async def test_second_projector_on_the_folder_says_so(broker: Broker, settings: Settings) -> None:
    async with await Client.connect(settings) as client:
        first = start(settings)
        await at_least(client, 0)
        second = subprocess.run(
            [sys.executable, "-m", "jetfleet", "projector", "--data-dir", str(settings.data_dir),
             "--nats-url", settings.nats_url],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        first.send_signal(signal.SIGTERM)
        assert first.wait(20) == 0
    assert second.returncode != 0
    assert "Another projector may have it" in second.stderr
    assert "Traceback" not in second.stderr
