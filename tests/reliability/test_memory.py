"""Memory runs out in torch's own allocator: the kernel refuses it to a running service, by a limit set on its process."""

import resource
from pathlib import Path

import pytest

from tests.api.asking import ask
from tests.models import make_model
from tests.reliability.test_process import served

pytestmark = pytest.mark.server
WIDE, NUM_TEXTS = 8192, 16
"""A value of the MLP takes 32 KiB a token: 70 MB for the batch's 2,150 tokens, of which a forward holds three."""
ROOM_BYTES = 40_000_000


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux limits a process that runs")
def test_a_batch_for_which_there_is_no_memory_is_split_and_every_item_gets_its_own_score(tmp_path: Path) -> None:
    directory = make_model(tmp_path / "model", intermediate_size=WIDE)
    items = [{"text": f"{i} " + "water kettle tea lock " * 12} for i in range(NUM_TEXTS)]
    log = tmp_path / "log"
    with log.open("wb") as stderr, served(directory, "--prefix-cache-mb", "0", stderr=stderr) as service:
        alone = [result for item in items for result in ask(service.client, "/score", {"items": [item]})["results"]]
        pid = service.process.pid
        limits = resource.prlimit(pid, resource.RLIMIT_DATA)
        resource.prlimit(pid, resource.RLIMIT_DATA, (data_bytes(pid) + ROOM_BYTES, limits[1]))
        assert ask(service.client, "/score", {"items": items})["results"] == alone
        resource.prlimit(pid, resource.RLIMIT_DATA, limits)  # the threads that end the process need memory, too
    assert b"out of memory with 16 sequences" in log.read_bytes()


def data_bytes(pid: int) -> int:
    """The memory of its own that a process has asked for."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return 1024 * int(next(line for line in status.splitlines() if line.startswith("VmData")).split()[1])
