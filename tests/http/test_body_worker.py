"""The worker process: it does the work, passes errors on, and neither its death nor the service's leaves anything behind."""

import asyncio
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import active_children
from typing import Any

import pytest

from app.api.bodies import parse
from app.api.ppo_schemas import PPORequest
from app.errors import InvalidInputError
from app.http.body_worker import Worker
from tests.processes import running


def with_worker(use: Any) -> Any:
    async def run() -> Any:
        worker = Worker()
        try:
            return await use(worker)
        finally:
            await asyncio.to_thread(worker.close)

    return asyncio.run(run())


def test_the_work_is_done_in_another_process_that_stays() -> None:
    async def use(worker: Worker) -> list[int]:
        return [await worker.run(os.getpid) for _ in range(2)]

    first, second = with_worker(use)
    assert first == second != os.getpid()


def test_what_the_work_raises_arrives_with_its_place() -> None:
    body = b'{"items": [{"text": "a"}, {"text": "a", "policy_logprobs": ["x"], "reference_logprobs": [-1]}]}'

    async def use(worker: Worker) -> Any:
        return await worker.run(parse, PPORequest, body)

    with pytest.raises(InvalidInputError, match=r"items\[1\]\.policy_logprobs\[0\]") as refused:
        with_worker(use)
    assert refused.value.item == 1


def test_a_worker_that_is_killed_loses_no_work_and_the_next_starts_another() -> None:
    async def use(worker: Worker) -> tuple[int, int, int]:
        first = await worker.run(os.getpid)
        here = await worker.run(exit_unless, os.getpid())
        return first, here, await worker.run(os.getpid)

    first, here, next_one = with_worker(use)
    assert here == os.getpid()
    assert len({first, here, next_one}) == 3


def exit_unless(pid: int) -> int:
    if os.getpid() != pid:
        os._exit(1)
    return pid


def test_a_service_that_is_killed_leaves_no_orphan() -> None:
    script = (
        "import asyncio, os, time\n"
        "from app.http.body_worker import Worker\n"
        "if __name__ == '__main__':\n"
        "    worker = Worker()\n"
        "    print(asyncio.run(worker.run(os.getpid)), flush=True)\n"
        "    time.sleep(60)\n"
    )
    command = [sys.executable, "-c", script]
    with running(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        worker = os.pidfd_open(pid)
        process.kill()
        assert asyncio.run(ends(worker))


async def ends(pidfd: int) -> bool:
    """Whether the process of `pidfd` ends within a few seconds."""
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(pidfd, ended.set)
    try:
        await asyncio.wait_for(ended.wait(), 10)
    finally:
        asyncio.get_running_loop().remove_reader(pidfd)
        os.close(pidfd)
    return True


def no_semaphores(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where /dev/shm cannot be written."""
    monkeypatch.setattr("multiprocessing.synchronize._multiprocessing.SemLock", raising(PermissionError(13, "denied")))


def no_sem_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a system that has no such call."""
    monkeypatch.setattr("multiprocessing.synchronize._multiprocessing.SemLock", raising(OSError(38, "ENOSYS")))


def no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the limit of processes is reached."""
    monkeypatch.setattr("multiprocessing.util.spawnv_passfds", raising(BlockingIOError(11, "Try again")))


def no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the limit of threads is reached."""
    monkeypatch.setattr("threading.Thread.start", raising(RuntimeError("can't start new thread")))


def raising(error: Exception) -> Any:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


@pytest.mark.parametrize("lack", [no_semaphores, no_sem_open, no_process, no_thread])
def test_work_is_done_here_where_no_process_can_be_started(monkeypatch: pytest.MonkeyPatch, lack: Any) -> None:
    async def use(worker: Worker) -> list[int]:
        with monkeypatch.context() as patched:
            lack(patched)
            here = [await worker.run(os.getpid) for _ in range(2)]
        worker._retry_at = 0.0
        return [*here, await worker.run(os.getpid)]

    before = set(active_children())
    *here, later = with_worker(use)
    assert here == [os.getpid()] * 2
    assert later != os.getpid()
    assert set(active_children()) <= before  # Python would wait for one that is left when it ends


def test_a_start_that_failed_is_not_tried_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    no_process(monkeypatch)
    tried: list[object] = []
    start = ProcessPoolExecutor.submit

    def submit(*args: Any) -> Any:
        tried.append(args)
        return start(*args)

    monkeypatch.setattr(ProcessPoolExecutor, "submit", submit)

    async def use(worker: Worker) -> None:
        for _ in range(5):
            await worker.run(os.getpid)

    with_worker(use)
    assert len(tried) == 1
