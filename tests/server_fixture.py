"""A server in an event loop of its own thread, for tests that are its clients."""
from __future__ import annotations

import asyncio
import threading
from contextlib import contextmanager

from pyruntime.server import Server


@contextmanager
def serving(models, **options):
    """A running Server, its address bound and its models loaded; `server.run(coroutine)` runs in its loop."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def wait(work, timeout=60):
        return asyncio.run_coroutine_threadsafe(work, loop).result(timeout)

    async def make():
        server = Server(models, **options)
        await server.start()
        if not any(map(callable, models.values())):
            await server.loaded()
        return server

    server = None
    try:
        server = wait(make())
        server.run, server.loop = wait, loop
        yield server
    finally:
        if server is not None:
            wait(server.stop(timeout=5))
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
