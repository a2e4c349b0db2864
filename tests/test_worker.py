"""The worker process: it does the work, passes errors on, and neither its death nor the service's leaves anything behind."""

import asyncio
import os
import subprocess
import sys
from typing import Any

import pytest

from app.api.bodies import parse
from app.errors import InvalidInputError
from app.schemas import PPORequest
from app.worker import Worker
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
        "from app.worker import Worker\n"
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
