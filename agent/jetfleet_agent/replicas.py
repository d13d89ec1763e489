"""One replica: a model started, made ready, restarted when it ends by itself, stopped when told."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from jetfleet.specs import JobSpec
from jetfleet_agent.contracts import Session, contract_of
from jetfleet_agent.runtimes import Instance, Place, StartFailed, describe_exit, runtime_of

logger = logging.getLogger("jetfleet.replica")
STOP_GRACE_S = 5.0
RESTARTS = 5  # in a row, without a call in between that ended well
BACKOFF_S = 0.2
READY_SLACK_S = 1.0


@dataclass(slots=True, eq=False)
class Replica:
    """See the module.

    Args:
        changed: called whenever the replica begins or ceases to serve.
        max_output_bytes: larger outputs are invalid.
        owner, gpus: see ``Place``.
        report: is told what a long start does just now.
    """

    id: str
    tenant: str
    spec: JobSpec
    workdir: Path
    changed: Callable[[], None]
    max_output_bytes: int
    owner: str
    gpus: tuple[str, ...]
    report: Callable[[str], None]
    held: bool = False  # on trial: it runs its example, and nothing of the queue
    running: int = 0  # calls in it
    restarts: int = 0
    session: Session | None = None
    instance: Instance | None = None
    stopping: bool = False
    failure: StartFailed | None = None
    killed_for: str = ""  # why we ended the present instance, if we did
    on_instance: list[Callable[[], None]] = field(default_factory=list)  # called with each new one
    _streak: int = 0
    _watch: asyncio.Task[None] | None = None
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def serving(self) -> bool:
        return self.session is not None and not self.stopping and not self.held

    @property
    def free(self) -> int:
        """Calls it could take now."""
        return self.spec.concurrency - self.running if self.serving else 0

    def tail(self) -> tuple[str, ...]:
        """The model's last lines of output."""
        return self.instance.tail() if self.instance is not None else ()

    def described(self) -> dict[str, str]:
        """What its ready event says of the instance."""
        instance = self.instance
        return {} if instance is None else {"image": instance.image, "network": instance.network}

    async def start(
        self,
        on_lost: Callable[[Replica], Awaitable[None]],
        on_back: Callable[[Replica, float], Awaitable[None]],
        *,
        adopt: bool = False,
    ) -> None:
        """Start the model and return when it serves.

        ``on_lost``: it ended and does not come back; may ``stop`` it. ``on_back``: it ended and
        serves again, after so many seconds. ``adopt``: it has been started already, by the agent
        before this one.

        Raises:
            StartFailed: it could not be started or made ready.
        """
        try:
            await self._start_once(adopt)
        except StartFailed:
            if adopt or self.instance is None or not self.instance.reconsider():
                raise
            await self._start_once()
        self._watch = asyncio.create_task(self._keep_alive(on_lost, on_back))
        self._watch.add_done_callback(_say_why)

    async def _start_once(self, adopt: bool = False) -> None:
        model = self.spec.model
        contract = contract_of(model.contract, max_output_bytes=self.max_output_bytes)
        self.workdir.mkdir(parents=True, exist_ok=True)
        launch = contract.launch(model, self.spec.concurrency, self.workdir)
        place = Place(
            self.id, self.tenant, self.spec.name, self.owner, model, self.gpus, self.report
        )
        runtime = runtime_of(model.runtime)
        started = await (runtime.adopt if adopt else runtime.start)(launch, place)
        if started is None:
            raise StartFailed("it did not outlive the agent that started it")
        self.instance = instance = started
        for listener in self.on_instance:
            listener()
        self.killed_for = ""
        session = contract.session(model, instance, launch, self.spec.concurrency)
        try:
            # The session has the same limit, and can say what it waited for.
            async with asyncio.timeout(model.startup_timeout_s + READY_SLACK_S):
                await session.ready()
        except TimeoutError:
            tail = instance.tail()
            await self._discard(session, instance)
            raise StartFailed(
                f"it was not ready within {model.startup_timeout_s:g} s (startup_timeout_s)", tail
            ) from None
        except BaseException:
            await self._discard(session, instance)
            raise
        self.session = session
        self.changed()

    async def _discard(self, session: Session, instance: Instance) -> None:
        with contextlib.suppress(Exception):
            await session.close()
        await instance.stop(0.2)

    async def _keep_alive(
        self,
        on_lost: Callable[[Replica], Awaitable[None]],
        on_back: Callable[[Replica, float], Awaitable[None]],
    ) -> None:
        """Start it again when its process ends; give up after some in a row."""
        while True:
            instance, session = self.instance, self.session
            assert instance is not None and session is not None
            status = await asyncio.shield(instance.exited)
            if self.stopping:
                return
            self.session = None
            self.changed()
            await self._discard(session, instance)
            self.restarts += 1
            self._streak += not self.killed_for  # an end that we made is no crash
            logger.warning("! replica of %s %s", self.spec.name, describe_exit(status))
            try:
                if self._streak > RESTARTS:
                    raise StartFailed(
                        f"its process {describe_exit(status)}, {self._streak} times in a row",
                        instance.tail(),
                    )
                await asyncio.sleep(BACKOFF_S * 2 ** (self._streak - 1) - BACKOFF_S)
                began = time.monotonic()
                await self._start_once()
                await on_back(self, time.monotonic() - began)
            except StartFailed as error:
                self.failure = error
            except Exception as error:  # a defect: nobody must wait for this replica for ever
                logger.exception("! replica of %s broke", self.spec.name)
                self.failure = StartFailed(f"the agent broke ({type(error).__name__}: {error})")
            else:
                continue
            await on_lost(self)
            return

    def well(self) -> None:
        """A call ended well: earlier crashes do not count any more."""
        self._streak = 0

    async def kill(self, why: str) -> None:
        """End a model that does not obey; it is started again by itself.

        ``why`` is told to the other calls in it, which are not to blame.
        """
        instance = self.instance
        self.killed_for = why
        self.session = None
        self.changed()
        if instance is not None:
            await instance.stop(0)

    async def stop(self) -> None:
        """End it for good; nothing of it is left."""
        self.stopping = True
        self.changed()
        if self._watch is not None and self._watch is not asyncio.current_task():
            self._watch.cancel()  # not when it is the watch that gives the replica up
        async with self._lock:
            session, self.session = self.session, None
            instance, self.instance = self.instance, None
            if session is not None:
                with contextlib.suppress(Exception):
                    await session.close()
            if instance is not None:
                await instance.stop(STOP_GRACE_S)
            await asyncio.to_thread(shutil.rmtree, self.workdir, ignore_errors=True)


def _say_why(watch: asyncio.Task[None]) -> None:
    if not watch.cancelled() and (error := watch.exception()) is not None:
        logger.error("! nobody looks after a replica any more", exc_info=error)
