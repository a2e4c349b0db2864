"""What a model takes and what is left are known before a byte of it is read; what does not fit is refused in one line."""

from pathlib import Path

import pytest
import torch
from torch import nn

from app.checkpoints import memory, placement
from app.checkpoints.loading import load_checkpoint
from app.checkpoints.memory import available_bytes, cgroup_limits, host_limits, loading_bytes, require_memory
from app.errors import ModelRefusedError

CPU = torch.device("cpu")


def proc_dir(directory: Path, cgroup: str, available_kb: int = 8_000_000) -> Path:
    (directory / "self").mkdir(parents=True)
    (directory / "self" / "cgroup").write_text(cgroup)
    (directory / "meminfo").write_text(f"MemTotal: 16000000 kB\nMemFree: 5 kB\nMemAvailable: {available_kb} kB\n")
    return directory


def group(directory: Path, names: tuple[str, str], limit: str, usage: int, stat: str) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    for name, value in (*zip(names, (limit, str(usage)), strict=True), ("memory.stat", stat)):
        (directory / name).write_text(f"{value}\n")
    return directory


V1, V2 = ("memory.limit_in_bytes", "memory.usage_in_bytes"), ("memory.max", "memory.current")


def test_the_kernel_says_what_it_would_hand_out(tmp_path: Path) -> None:
    assert list(host_limits(proc_dir(tmp_path / "proc", ""))) == [8_192_000_000]
    assert list(host_limits(tmp_path / "no-proc")) == []


def test_a_containers_limit_counts_and_its_cached_files_do_not(tmp_path: Path) -> None:
    group(tmp_path / "fs", V2, "2000", 1500, "anon 700\ninactive_file 600")
    assert list(cgroup_limits(proc_dir(tmp_path / "proc", "0::/\n"), tmp_path / "fs")) == [1100]


def test_every_group_above_the_process_may_have_a_limit(tmp_path: Path) -> None:
    proc = proc_dir(tmp_path / "proc", "0::/user.slice/service\n")
    group(tmp_path / "fs" / "user.slice", V2, "900", 100, "inactive_file 0")
    group(tmp_path / "fs" / "user.slice" / "service", V2, "max", 100, "inactive_file 0")
    assert list(cgroup_limits(proc, tmp_path / "fs")) == [800]


def test_control_groups_of_version_1_count_too(tmp_path: Path) -> None:
    proc = proc_dir(tmp_path / "proc", "5:cpu:/\n4:memory:/docker/abc\n")
    group(tmp_path / "fs" / "memory", V1, "700", 300, "total_inactive_file 50")
    assert list(cgroup_limits(proc, tmp_path / "fs")) == [450]


def test_the_tightest_limit_is_what_is_available(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "PROC", proc_dir(tmp_path / "proc", "0::/\n"))
    monkeypatch.setattr(memory, "CGROUPS", group(tmp_path / "fs", V2, "3000", 1000, "inactive_file 0"))
    assert available_bytes(CPU) == 2000
    monkeypatch.setattr(memory, "CGROUPS", tmp_path / "none")
    assert available_bytes(CPU) == 8_192_000_000
    monkeypatch.setattr(memory, "PROC", tmp_path / "none")
    assert available_bytes(CPU) is None
    require_memory("anything", CPU, 10**18)  # nothing says that it is not there


def test_weights_are_counted_in_the_types_they_will_have() -> None:
    with torch.device("meta"):
        net = nn.Sequential(nn.Linear(1000, 300), nn.Linear(300, 1))
    types = {"0.weight": torch.int8, "0.bias": torch.bfloat16, "1.weight": torch.float32, "1.bias": torch.float32}
    assert loading_bytes(net, types) == int((300_000 + 600 + 1204) * 1.05)


@pytest.mark.parametrize(("dtype", "needed"), [("float32", "140.88"), ("bfloat16", "70.53"), ("int8", "68.31")])
def test_a_model_that_does_not_fit_is_refused_with_both_figures_and_the_ways_out(
    tmp_path: Path, safety_dir: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, needed: str
) -> None:
    monkeypatch.setattr(memory, "PROC", proc_dir(tmp_path / "proc", "", available_kb=20))
    monkeypatch.setattr(memory, "CGROUPS", tmp_path / "none")
    with pytest.raises(ModelRefusedError) as refused:
        load_checkpoint(str(safety_dir), device="cpu", dtype=dtype)
    message = str(refused.value)
    assert message.startswith(f"{safety_dir} needs {needed} kB on cpu and 20.48 kB is free; ")
    assert "dtype bfloat16 or int8" in message
    assert "device split" in message
    assert "\n" not in message


def test_a_model_that_fits_nowhere_even_when_split_is_refused(safety_dir: Path) -> None:
    from transformers import AutoConfig, AutoModelForSequenceClassification

    with torch.device("meta"):
        net = AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(safety_dir))  # type: ignore[no-untyped-call]
    types = dict.fromkeys((name for name, _ in net.named_parameters()), torch.float32)
    with pytest.raises(
        ModelRefusedError, match=r"m needs \d+\.\d\d kB and 90.00 kB is free on 2 GPUs and in memory; use"
    ):
        placement.split_map("m", net, "score", types, {0: 30_000, 1: 30_000, "cpu": 30_000})


def test_a_prefix_cache_takes_a_tenth_of_the_free_memory_a_gigabyte_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    for free, share in ((3_000_000_000, 300_000_000), (64_000_000_000, 1_000_000_000), (None, 0)):
        monkeypatch.setattr(memory, "available_bytes", lambda _device, free=free: free)
        assert memory.prefix_cache_bytes(cpu, None) == share
    monkeypatch.setattr(memory, "available_bytes", lambda _device: 3_000_000_000)
    assert memory.prefix_cache_bytes(cpu, 2500) == 2_500_000_000
    with pytest.raises(ModelRefusedError, match=r"needs 3.10 GB on cpu and 3.00 GB is free; .* to 1500 or less"):
        memory.prefix_cache_bytes(cpu, 3100)
