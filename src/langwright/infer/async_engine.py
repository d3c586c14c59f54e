"""The engine for asyncio: it works in a thread of its own, and answers arrive in the caller's event loop."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from typing import Self

from langwright.core.errors import UserError
from langwright.infer.engine import Delta, Engine, Request
from langwright.infer.sampling import SamplingConfig

Mail = Callable[[Delta | None], None]
"""Takes a request's deltas, and None when it has ended; called in the engine's thread."""


class AsyncEngine:
    """Owns ``engine`` from now on: nobody else may step it. Use it in ``async with``, or call `close`."""

    def __init__(self, engine: Engine):
        self._engine = engine
        self._mail: dict[Request, Mail] = {}
        self._inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._closed = False
        self._lock = Lock()
        self._thread = Thread(target=self._work, name="langwright-engine", daemon=True)
        self._thread.start()

    def submit(
        self, prompt: Sequence[int], sampling: SamplingConfig, *, tenant: str = ""
    ) -> AsyncGenerator[Delta, None]:
        """Deltas as they are written: ``async for delta in engine.submit(...)``; afterwards ``delta.request.result``.

        What is wrong with the request is raised here, as `Engine.open` does; work begins with the iteration. Leaving
        it early, or cancelling its task, ends the request before the next step. Raises the request's error where it
        cannot be finished, and `UserError` once the engine is closed.
        """
        return self._deltas(self._engine.open(prompt, sampling, tenant=tenant))

    async def _deltas(self, request: Request) -> AsyncGenerator[Delta, None]:
        loop, arrived = asyncio.get_running_loop(), asyncio.Queue[Delta | None]()

        def mail(delta: Delta | None) -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(arrived.put_nowait, delta)

        self._post(lambda: self._begin(request, mail))
        try:
            while (delta := await arrived.get()) is not None:
                yield delta
        finally:
            with suppress(UserError):  # closed meanwhile, and so is the request
                self._post(lambda: self._end(request))
        if request.error is not None:
            raise request.error

    async def close(self) -> None:
        """End every request with an error, and the thread after the step that it is in."""
        with self._lock:
            first, self._closed = not self._closed, True
        if first:
            self._inbox.put(self._leave)
        await asyncio.to_thread(self._thread.join)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _post(self, task: Callable[[], None]) -> None:
        with self._lock:
            if self._closed:
                raise UserError("the engine is closed; start another one")
            self._inbox.put(task)

    def _work(self) -> None:
        """The thread: messages first, then a step, until `_leave`."""
        with suppress(SystemExit):
            while True:
                with suppress(Empty):
                    while True:
                        self._inbox.get(block=self._engine.idle)()
                self._step()

    def _step(self) -> None:
        try:
            deltas = self._engine.step()
        except Exception as error:  # whatever it is, those who wait must hear of it
            self._engine.fail(error)
            deltas = []
        for delta in deltas:
            self._mail[delta.request](delta)
        for request in [request for request in self._mail if request.ended]:
            self._mail.pop(request)(None)

    def _begin(self, request: Request, mail: Mail) -> None:
        self._engine.add(request)
        if request.ended:  # nothing was asked for
            mail(None)
        else:
            self._mail[request] = mail

    def _end(self, request: Request) -> None:
        self._engine.cancel(request)
        self._mail.pop(request, None)

    def _leave(self) -> None:
        self._engine.fail(UserError("the engine was closed before the answer was finished"))
        for mail in self._mail.values():
            mail(None)
        self._mail.clear()
        raise SystemExit
