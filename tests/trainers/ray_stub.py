"""What verl uses of Ray, without a cluster: each actor is a thread with an event loop of its own."""

import asyncio
import inspect
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from tests.trainers.packages import stub


class Ref:
    """A result that is still to come, for `await` and `ray.get`."""

    def __init__(self, future: "Future[Any]") -> None:
        self.future = future

    def __await__(self) -> Any:
        return asyncio.wrap_future(self.future).__await__()


class Actor:
    """An object in a thread; `actor.method.remote(...)` calls it there."""

    def __init__(self, kind: type[Any], args: Any, kwargs: Any) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._made: Future[Any] = Future()
        self._end = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._live(kind, args, kwargs)))
        self._thread.start()
        self._object = self._made.result()

    async def _live(self, kind: type[Any], args: Any, kwargs: Any) -> None:
        self._loop = asyncio.get_running_loop()
        try:
            self._made.set_result(kind(*args, **kwargs))
        except BaseException as error:  # noqa: BLE001 - the maker raises it
            self._made.set_exception(error)
            return
        await asyncio.to_thread(self._end.wait)

    def stop(self) -> None:
        self._end.set()
        self._thread.join()

    def __getattr__(self, name: str) -> Any:
        return Method(self, getattr(self._object, name))


class Method:
    def __init__(self, actor: Actor, bound: Callable[..., Any]) -> None:
        self.actor, self.bound = actor, bound

    def remote(self, *args: Any, **kwargs: Any) -> Ref:
        async def call() -> Any:
            result = self.bound(*args, **kwargs)
            return await result if inspect.isawaitable(result) else result

        assert self.actor._loop is not None
        return Ref(asyncio.run_coroutine_threadsafe(call(), self.actor._loop))


@contextmanager
def ray() -> Iterator[dict[str, ModuleType]]:
    """Stubs of Ray's modules by name. `ray.shutdown` ends the actors, as the end of this context does."""
    actors: list[Actor] = []

    class Remote:
        def __init__(self, kind: type[Any]) -> None:
            self.kind = kind

        def options(self, **_: Any) -> "Remote":
            return self

        def remote(self, *args: Any, **kwargs: Any) -> Actor:
            actors.append(Actor(self.kind, args, kwargs))
            return actors[-1]

    def remote(*args: Any, **_: Any) -> Any:
        return Remote(args[0]) if args else Remote

    def shutdown() -> None:
        while actors:
            actors.pop().stop()

    placement = stub(
        "ray.util.scheduling_strategies",
        **dict.fromkeys(["NodeAffinitySchedulingStrategy", "PlacementGroupSchedulingStrategy"], dict),
    )
    modules = {
        "ray": stub(
            "ray",
            remote=remote,
            get=lambda refs: [ref.future.result() for ref in refs],
            nodes=lambda: [{"NodeID": "here", "Alive": True, "Resources": {"CPU": 1}}],
            get_runtime_context=lambda: stub("context", get_node_id=lambda: "here"),
            ObjectRef=Ref,
            shutdown=shutdown,
        ),
        "ray.actor": stub("ray.actor", ActorHandle=Actor),
        "ray.experimental": stub("ray.experimental"),
        "ray.experimental.state": stub("ray.experimental.state"),
        "ray.experimental.state.api": stub("ray.experimental.state.api", get_actor=None),
        "ray.util.placement_group": stub(
            "ray.util.placement_group", PlacementGroup=object, placement_group=None, remove_placement_group=None
        ),
        "ray.util": stub("ray.util", scheduling_strategies=placement),
        "ray.util.scheduling_strategies": placement,
    }
    vars(modules["ray"]).update(actor=modules["ray.actor"], util=modules["ray.util"])
    try:
        yield modules
    finally:
        shutdown()
