"""The console script's commands, run as a user runs them."""

import errno
import io
import json
import os
import shlex
import stat
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from app import __version__
from app.checkpoints.building import head_of
from app.checkpoints.loading import load_checkpoint
from app.cli import in_one_line, main
from app.errors import ModelRefusedError
from tests.api.asking import LOCK, TEA, ask
from tests.conftest import Serve
from tests.models import make_language_model
from tests.processes import CLI, environment, free_port, running

PAIR = {"prompt": TEA["prompt"], "chosen": TEA["response"], "rejected": "tea tea tea", "rating": "better"}


@pytest.fixture
def models(safety_dir: Path, helpfulness_dir: Path) -> list[str]:
    return ["--safety-model", str(safety_dir), "--helpfulness-model", str(helpfulness_dir)]


def jsonl(path: Path, *entries: Any) -> str:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
    return str(path)


def results(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_score_writes_a_result_a_line(
    tmp_path: Path, models: list[str], client: httpx.Client, capsys: pytest.CaptureFixture[str]
) -> None:
    items = [TEA, LOCK, {"text": "naïve 茶"}]
    assert main(["score", jsonl(tmp_path / "items.jsonl", *items), *models]) == 0
    served = ask(client, "/score", {"items": items})["results"]
    for own, other in zip(results(capsys.readouterr().out), served, strict=True):
        for name, entry in other["scores"].items():
            assert own["scores"][name]["score"] == pytest.approx(entry["score"], abs=1e-5)


def test_score_writes_to_a_file_and_keeps_the_order_over_many_requests(
    tmp_path: Path, models: list[str], client: httpx.Client, capsys: pytest.CaptureFixture[str]
) -> None:
    items = [{"text": f"number {n}"} for n in range(7)]
    out = tmp_path / "out.jsonl"
    words = ["score", jsonl(tmp_path / "in.jsonl", *items), "--out", str(out), "--max-items", "3", *models]
    assert main(words) == 0
    assert capsys.readouterr().out == ""
    served = [r["scores"]["safety"]["score"] for r in ask(client, "/score", {"items": items})["results"]]
    own = [r["scores"]["safety"]["score"] for r in results(out.read_text())]
    assert own == pytest.approx(served, abs=1e-5)


def test_compare_writes_results_and_a_summary_of_all_requests(
    tmp_path: Path, models: list[str], client: httpx.Client, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = [PAIR, PAIR | {"chosen": "tea tea tea", "rejected": TEA["response"]}, PAIR]
    words = [
        "compare",
        jsonl(tmp_path / "pairs.jsonl", *pairs),
        "--margin-scheme",
        "small",
        "--max-items",
        "2",
        *models,
    ]
    assert main(words) == 0
    captured = capsys.readouterr()
    answer = ask(client, "/compare", {"pairs": pairs, "margin_scheme": "small"})
    summary = answer["summary"]
    assert [r["margin"] for r in results(captured.out)] == pytest.approx([2 / 3] * 3)
    assert f"3 pairs: accuracy {summary['accuracy']:.4f}, loss {summary['loss']:.4f}" in captured.err


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_progress_bar_is_shown_to_a_terminal_and_to_nothing_else(
    tmp_path: Path, models: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = jsonl(tmp_path / "items.jsonl", TEA, LOCK)
    assert main(["score", file, *models]) == 0
    assert "2/2" not in capsys.readouterr().err
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    assert main(["score", file, *models]) == 0
    assert "2/2" in terminal.getvalue()
    assert "100%" in terminal.getvalue()


def test_a_file_is_replaced_only_by_a_whole_result(tmp_path: Path, models: list[str]) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("what was there before")
    bad = jsonl(tmp_path / "bad.jsonl", TEA, {"txt": "tea"}, LOCK)
    assert main(["score", bad, "--out", str(out), "--max-items", "1", *models]) == 1
    assert out.read_text() == "what was there before"
    assert main(["score", bad, "--out", str(out), "--max-items", "0", *models]) == 1
    assert out.read_text() == "what was there before"


def test_the_input_is_never_overwritten(tmp_path: Path, models: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    file = jsonl(tmp_path / "items.jsonl", TEA)
    before = Path(file).read_text()
    assert main(["score", file, "--out", file, *models]) == 1
    assert "is the input" in capsys.readouterr().err
    assert Path(file).read_text() == before


def test_standard_output_cannot_be_resumed(
    tmp_path: Path, models: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["score", jsonl(tmp_path / "items.jsonl", TEA), "--resume", *models]) == 1
    assert "needs --out" in capsys.readouterr().err


def test_a_byte_order_mark_at_the_start_of_a_file_is_passed_over(
    tmp_path: Path, models: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "items.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + json.dumps(TEA).encode() + b"\n")
    assert main(["score", str(file), *models]) == 0
    assert len(results(capsys.readouterr().out)) == 1


def test_standard_input_is_a_file(
    models: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b'{"text": "a"}\n\n{"text": "b"}')))
    assert main(["score", "-", *models]) == 0
    assert len(results(capsys.readouterr().out)) == 2


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"{", "line 4 is not JSON: EOF while parsing an object at column 1; correct it, or take the line out"),
        (b'{"text": "a"}, {"text": "b"}', "line 4 is not JSON"),
        (b'{"text": "\xff"}', "line 4 has the byte 0xff at column 11, which is not UTF-8; save the file as UTF-8"),
        (b'{"text": "\\ud800"}', "line 4 is not JSON"),
        (b'{"text":' + b"[" * 10_000, "line 4 is not JSON"),
        (b"1", "line 4: items[1]"),
        (b"null", "line 4: items[1]"),
        (b'{"txet": "a"}', "line 4: items[1]"),
        (b'{"text": NaN}', "line 4: items[1].text is nan"),
        (b'{"text": "a", "metadata": [1e999]}', "line 4: metadata has NaN or an infinite number; write it as a string"),
        (b'{"input_ids": [1e999]}', "line 4: items[1].input_ids[0] is inf"),
        (b'{"input_ids": [320]}', "line 4: items[1] has token id 320"),
    ],
)
def test_an_error_names_the_file_and_the_line(
    tmp_path: Path, models: list[str], capsys: pytest.CaptureFixture[str], line: bytes, says: str
) -> None:
    file = tmp_path / "items.jsonl"
    file.write_bytes(b'{"text": "a"}\n{"text": "b"}\n\n' + line + b"\n")
    assert main(["score", str(file), "--max-items", "3", *models]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"reward-service: {file} {says.split(':', maxsplit=1)[0]}")
    assert says.replace("items[1]", "items[2]") in error
    assert error.count("\n") == 1


def test_an_over_long_line_is_named_and_may_be_truncated(
    tmp_path: Path, models: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    file = jsonl(tmp_path / "items.jsonl", TEA, {"prompt": "word " * 600, "response": "Yes."})
    assert main(["score", file, *models]) == 1
    assert "line 2: items[1] has" in capsys.readouterr().err
    assert main(["score", file, "--truncation", "prompt", *models]) == 0


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_a_file_without_lines_is_refused(
    tmp_path: Path, models: list[str], capsys: pytest.CaptureFixture[str], content: str
) -> None:
    file = tmp_path / "empty.jsonl"
    file.write_text(content)
    assert main(["score", str(file), *models]) == 1
    assert "has no lines" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("absent", None, "there is no file {}; give a JSONL file, or - for standard input"),
        (".", None, "{} is a directory; give a JSONL file"),
        ("a" * 300, None, "{} cannot be read (File name too long); give a file that you may read"),
        ("utf16", "{}".encode("utf-16"), "{} is UTF-16; save it as UTF-8"),
    ],
)
@pytest.mark.parametrize("command", ["score", "compare", "evaluate"])
def test_a_file_that_cannot_be_read_is_one_line_with_the_remedy(
    tmp_path: Path,
    models: list[str],
    capsys: pytest.CaptureFixture[str],
    command: str,
    name: str,
    content: bytes | None,
    says: str,
) -> None:
    file = tmp_path / name
    if content is not None:
        file.write_bytes(content)
    assert main([command, str(file), *models]) == 1
    assert capsys.readouterr().err == f"reward-service: {says.format(file)}\n"


def test_standard_input_has_a_name_in_errors(
    models: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    assert main(["score", "-", *models]) == 1
    assert capsys.readouterr().err == "reward-service: standard input has no lines; give one JSON object a line\n"
    for line in (b'{"txet": "a"}', b'{"text": "a", "id": NaN}', b"{"):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(line)))
        assert main(["score", "-", *models]) == 1
        assert capsys.readouterr().err.startswith("reward-service: standard input line 1")


def test_a_closed_standard_output_is_one_line(tmp_path: Path, models: list[str]) -> None:
    command = shlex.join([*CLI, "score", jsonl(tmp_path / "items.jsonl", TEA), *models])
    with running(["bash", "-c", f"{command} >&-"], stderr=subprocess.PIPE) as process:
        _, error = process.communicate(timeout=120)
    assert process.returncode == 1
    assert error == "reward-service: standard output is closed; redirect it, to a file or to /dev/null\n"


def test_a_file_of_results_needs_no_standard_output(tmp_path: Path, models: list[str]) -> None:
    results = tmp_path / "results.jsonl"
    command = shlex.join([*CLI, "score", jsonl(tmp_path / "items.jsonl", TEA), "--out", str(results), *models])
    with running(["bash", "-c", f"{command} >&-"], stderr=subprocess.PIPE) as process:
        _, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    assert len(results.read_text().splitlines()) == 1


def test_an_error_of_the_system_is_told_in_its_words() -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    assert in_one_line(full) == (
        "a file cannot be written (No space left on device); make room on its disk, or write to another"
    )
    assert in_one_line(OSError(errno.EACCES, "Permission denied", "out.jsonl")) == "out.jsonl: Permission denied"
    assert in_one_line(OSError("of another kind")) == "of another kind"


def test_keys_and_limits_of_the_network_do_not_stop_a_file(
    tmp_path: Path, models: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REWARD_API_KEYS", "secret")
    monkeypatch.setenv("REWARD_DEADLINE_SECONDS", "1e-9")
    monkeypatch.setenv("REWARD_MAX_BODY_MB", "1e-6")
    assert main(["score", jsonl(tmp_path / "items.jsonl", TEA), *models]) == 0


def test_a_model_that_cannot_be_served_is_one_line(
    tmp_path: Path, safety_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = jsonl(tmp_path / "items.jsonl", TEA)
    words = ["score", file, "--safety-model", str(safety_dir), "--helpfulness-model", str(tmp_path / "absent")]
    assert main(words) == 1
    error = capsys.readouterr().err
    assert f"no helpfulness model at {tmp_path / 'absent'}" in error
    assert error.count("\n") == 1


def test_a_wrong_setting_is_one_line(tmp_path: Path, models: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", jsonl(tmp_path / "items.jsonl", TEA), "--max-items", "none", *models]) == 1
    error = capsys.readouterr().err
    assert error.startswith("reward-service: --max-items 'none': ")
    assert error.count("\n") == 1


def test_usage_that_is_wrong_is_exit_code_two(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["score"], ["serve", "--no-such-flag", "1"], ["dance"]):
        with pytest.raises(SystemExit) as exited:
            main(words)
        assert exited.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_help_lists_the_settings(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        main(["serve", "--help"])
    assert exited.value.code == 0
    assert "--max-batch-tokens" in capsys.readouterr().out


# -- what goes in comes out, and nothing is lost ----------------------------------------------------------------------


def test_ids_and_inputs_stand_in_the_results(
    tmp_path: Path, models: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    items: list[dict[str, Any]] = [
        {"id": 7, **TEA},
        {"text": "naïve 茶", "metadata": {"set": "a"}},
        {"id": None, "text": "c"},
    ]
    assert main(["score", jsonl(tmp_path / "items.jsonl", *items), *models]) == 0
    rows = results(capsys.readouterr().out)
    for item, row in zip(items, rows, strict=True):
        assert {name: row[name] for name in item} == item
        assert row.keys() - item.keys() == {"scores"}
    pairs = [PAIR | {"id": "a"}, PAIR | {"id": "b", "rating": None, "margin": 1.5}]
    assert main(["compare", jsonl(tmp_path / "pairs.jsonl", *pairs), *models]) == 0
    rows = results(capsys.readouterr().out)
    assert [(row["id"], row["prompt"], row["margin"]) for row in rows] == [
        ("a", PAIR["prompt"], 2.0),
        ("b", PAIR["prompt"], 1.5),
    ]


def test_a_byte_order_mark_at_the_start_is_understood(
    tmp_path: Path, models: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "items.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n{"text": "b"}\r\n')
    assert main(["score", str(file), *models]) == 0
    assert [row["text"] for row in results(capsys.readouterr().out)] == ["a", "b"]


TOO_LONG = {"prompt": "word " * 600, "response": "Yes."}


def test_a_run_that_fails_leaves_the_output_before_it_as_it_was(tmp_path: Path, models: list[str]) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("earlier results\n")
    wrong = jsonl(tmp_path / "wrong.jsonl", TEA, {"txet": "a"})
    long = jsonl(tmp_path / "long.jsonl", TOO_LONG)
    absent = ["--safety-model", str(tmp_path / "absent")]
    for words in ([wrong, *models], [long, *models], [jsonl(tmp_path / "right.jsonl", TEA), *models, *absent]):
        assert main(["score", *words, "--out", str(out)]) == 1
        assert out.read_text() == "earlier results\n"
        assert sorted(path.name for path in tmp_path.glob("out*")) == ["out.jsonl"]


def test_the_input_is_never_its_own_output(
    tmp_path: Path, models: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    file = jsonl(tmp_path / "items.jsonl", TEA)
    before = Path(file).read_text()
    (tmp_path / "link.jsonl").symlink_to(file)
    (tmp_path / "other.partial.jsonl").symlink_to(file)
    for out in (file, str(tmp_path / "link.jsonl"), str(tmp_path / "other.jsonl")):
        assert main(["score", file, "--out", out, *models]) == 1
        assert "is the input itself" in capsys.readouterr().err
        assert Path(file).read_text() == before


@pytest.mark.parametrize(
    ("out", "says"), [("no/such/out.jsonl", "there is no directory"), (".", "is a directory; give a file")]
)
def test_an_output_that_cannot_be_written_is_found_before_a_model_is_loaded(
    tmp_path: Path,
    models: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    out: str,
    says: str,
) -> None:
    monkeypatch.setattr("app.main.create_app", None)
    assert main(["score", jsonl(tmp_path / "items.jsonl", TEA), "--out", str(tmp_path / out), *models]) == 1
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


def test_a_wrong_line_is_found_before_a_model_is_loaded(
    tmp_path: Path, models: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("app.main.create_app", None)
    items = [{"text": f"{n}"} for n in range(300)]
    assert main(["score", jsonl(tmp_path / "items.jsonl", *items, {"text": 3}), *models]) == 1
    assert "items.jsonl line 301: items[44].text" in capsys.readouterr().err


def test_resume_continues_after_the_results_that_are_there(
    tmp_path: Path, models: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    items = [{"id": n, "text": f"number {n}"} for n in range(6)]
    file, out, partial = (
        jsonl(tmp_path / "in.jsonl", *items, TOO_LONG),
        tmp_path / "out.jsonl",
        tmp_path / "out.partial.jsonl",
    )
    words = ["score", file, "--out", str(out), "--max-items", "2", *models]
    assert main(words) == 1
    assert f"the first 6 results are in {partial}; --resume continues after them" in capsys.readouterr().err
    assert not out.exists()
    first = partial.read_text()
    assert main(words) == 1
    assert "add --resume to continue it, or delete it" in capsys.readouterr().err
    assert partial.read_text() == first

    partial.write_text(first[:-20])  # as where the process was killed within a line
    jsonl(tmp_path / "in.jsonl", *items, {"id": 6, "text": "number 6"})
    assert main([*words, "--resume"]) == 0
    rows = results(out.read_text())
    assert [row["id"] for row in rows] == list(range(7))
    assert out.read_text().startswith(first)
    assert sorted(path.name for path in tmp_path.glob("out*")) == ["out.jsonl"]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("out.partial.jsonl", b"[1]\n", "result 1 of"),
        ("out.partial.jsonl", b"\xff\n", "result 1 of"),
        ("out.partial.jsonl.run", b"", "does not say what out.partial.jsonl is the output of; delete both"),
        ("out.partial.jsonl.run", b"[]", "does not say what"),
    ],
)
def test_resume_refuses_what_no_run_has_written(
    tmp_path: Path, models: list[str], capsys: pytest.CaptureFixture[str], name: str, content: bytes, says: str
) -> None:
    file, out = jsonl(tmp_path / "in.jsonl", TEA, LOCK), tmp_path / "out.jsonl"
    (tmp_path / "out.partial.jsonl").touch()
    (tmp_path / "out.partial.jsonl.run").touch()
    (tmp_path / name).write_bytes(content)
    assert main(["score", file, "--out", str(out), "--resume", *models]) == 1
    assert says in capsys.readouterr().err.splitlines()[-1]
    assert not out.exists()


def test_resume_refuses_another_input_another_option_and_another_model(
    tmp_path: Path, models: list[str], safety_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = jsonl(tmp_path / "in.jsonl", TEA, LOCK, TOO_LONG), tmp_path / "out.jsonl"
    words = ["score", file, "--out", str(out), "--max-items", "1", *models]
    assert main(words) == 1
    jsonl(tmp_path / "in.jsonl", LOCK, TEA)
    assert main([*words, "--resume"]) == 1
    assert "result 1 of" in capsys.readouterr().err
    jsonl(tmp_path / "in.jsonl", TEA, LOCK, TEA)
    assert main([*words, "--resume", "--truncation", "left"]) == 1
    assert "options is {'truncation': 'left'}, but" in capsys.readouterr().err
    assert main([*words, "--resume", "--helpfulness-model", str(safety_dir)]) == 1
    assert "models is" in capsys.readouterr().err
    assert main([*words, "--resume"]) == 0


def test_a_device_is_written_to_as_it_is(tmp_path: Path, models: list[str]) -> None:
    assert main(["score", jsonl(tmp_path / "items.jsonl", TEA), "--out", os.devnull, *models]) == 0
    assert Path(os.devnull).is_char_device()


def test_a_reader_that_has_enough_is_no_error(tmp_path: Path, models: list[str]) -> None:
    file = jsonl(tmp_path / "items.jsonl", *[{"text": f"{n}"} for n in range(2000)])
    command = shlex.join([*CLI, "score", file, "--max-items", "64", *models])
    shell = ["bash", "-c", f"{command} | head -n 1; exit ${{PIPESTATUS[0]}}"]
    with running(shell, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        out, error = process.communicate(timeout=120)
    assert (process.returncode, error) == (141, "")
    assert json.loads(out)["text"] == "0"


# -- a running server -------------------------------------------------------------------------------------------------


def test_a_running_server_gives_what_the_models_here_give(
    tmp_path: Path, models: list[str], client: httpx.Client, capsys: pytest.CaptureFixture[str]
) -> None:
    items = [TEA | {"id": 1}, LOCK, {"text": "naïve 茶"}]
    file, url = jsonl(tmp_path / "items.jsonl", *items), str(client.base_url)
    assert main(["score", file, *models]) == 0
    here = results(capsys.readouterr().out)
    assert main(["score", file, "--url", url]) == 0
    assert results(capsys.readouterr().out) == here
    assert main(["compare", jsonl(tmp_path / "pairs.jsonl", PAIR), "--url", url, "--margin-scheme", "small"]) == 0
    captured = capsys.readouterr()
    assert [row["margin"] for row in results(captured.out)] == pytest.approx([2 / 3])
    assert "1 pairs: accuracy" in captured.err


def test_errors_of_a_running_server_name_the_line(
    tmp_path: Path, client: httpx.Client, capsys: pytest.CaptureFixture[str]
) -> None:
    file = jsonl(tmp_path / "items.jsonl", TEA, TOO_LONG)
    assert main(["score", file, "--url", str(client.base_url)]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"reward-service: {file} line 2: items[1] has ")
    assert error.count("\n") == 1


def test_a_server_that_is_not_there_or_wants_a_key_is_one_line(
    tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = jsonl(tmp_path / "items.jsonl", TEA)
    url = f"http://127.0.0.1:{free_port()}"
    assert main(["score", file, "--url", url]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"reward-service: {url} did not answer /info")
    assert error.endswith("; start one with `reward-service serve`, or give another --url\n")
    assert error.count("\n") == 1
    with serve(api_keys="secret") as server:
        assert main(["score", file, "--url", str(server.base_url)]) == 1
        assert "REWARD_CLIENT_API_KEY" in capsys.readouterr().err
        monkeypatch.setenv("REWARD_CLIENT_API_KEY", "secret")
        assert main(["score", file, "--url", str(server.base_url)]) == 0


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("nonsense", "--url is 'nonsense', which does not begin with http:// or https://"),
        ("http://", "--url is 'http:', which has no host"),
    ],
)
def test_a_url_that_cannot_be_one_is_told_with_an_example(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], url: str, says: str
) -> None:
    assert main(["score", jsonl(tmp_path / "items.jsonl", TEA), "--url", url]) == 1
    assert capsys.readouterr().err == f"reward-service: {says}; pass one such as http://127.0.0.1:8000\n"


def test_a_server_of_another_kind_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        Thread(target=server.serve_forever).start()
        url = f"http://127.0.0.1:{server.server_port}"
        try:
            assert main(["score", jsonl(tmp_path / "items.jsonl", TEA), "--url", url]) == 1
        finally:
            server.shutdown()
    says = f"{url} answered HTTP 501 without an error of the reward service; check --url, and the proxy if there is one"
    assert capsys.readouterr().err.endswith(f"reward-service: {says}\n")


def test_settings_of_models_mean_nothing_to_a_running_server(
    tmp_path: Path, models: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["score", jsonl(tmp_path / "items.jsonl", TEA), "--url", "http://127.0.0.1:1", *models]) == 1
    assert "--safety-model, --helpfulness-model cannot be given with --url" in capsys.readouterr().err


# -- help and version -------------------------------------------------------------------------------------------------


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        main(["--version"])
    assert exited.value.code == 0
    assert capsys.readouterr().out == f"reward-service {__version__}\n"


def test_help_of_a_file_command_lists_what_concerns_it_with_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["score", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for shown in (
        "--url",
        "--safety-model",
        "--num-threads",
        "(default: error)",
        "(default: auto)",
        "(default: unset)",
    ):
        assert shown in text
    for hidden in ("--port", "--api-keys", "--grace-seconds", "--ui"):
        assert hidden not in text


@pytest.mark.parametrize(
    "words",
    [
        ["train", "--base", "absent", "--data", "-", "--out", "out"],
        ["init", "--from-lm", "absent", "--out", "out"],
        ["score", "items.jsonl", "--safety-model", "absent"],
        ["serve", "--safety-model", "absent"],
        ["evaluate", "items.jsonl", "--helpfulness-model", "absent"],
    ],
)
def test_a_directory_that_is_not_there_is_found_before_torch_is_imported(tmp_path: Path, words: list[str]) -> None:
    jsonl(tmp_path / "items.jsonl", PAIR if words[0] == "evaluate" else TEA)
    script = (
        "import sys; from app.cli import main; code = main(sys.argv[1:]); "
        "print(code, *sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run(  # noqa: S603 - our own script
        [sys.executable, "-c", script, *words],
        check=True,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment(),
        stdin=subprocess.DEVNULL,
    )
    assert done.stdout == "1\n", done.stderr
    assert "absent" in done.stderr


# -- init -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt_neox"])
def test_init_makes_a_reward_model_that_must_be_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], family: str
) -> None:
    lm, out = make_language_model(tmp_path / "lm", family), tmp_path / "reward"
    assert main(["init", "--from-lm", str(lm), "--out", str(out)]) == 0
    assert "must be trained" in capsys.readouterr().out
    with pytest.raises(ModelRefusedError, match="untrained head"):
        load_checkpoint(str(out), device="cpu")
    net = AutoModelForSequenceClassification.from_pretrained(out)
    trunk = AutoModelForCausalLM.from_pretrained(lm).base_model.state_dict()
    assert net.config.num_labels == 1
    assert all(torch.equal(net.base_model.state_dict()[name], weight) for name, weight in trunk.items())
    _, head = head_of(net)
    assert head.weight.std().item() == pytest.approx((head.in_features + 1) ** -0.5, rel=0.5)


def test_a_head_is_accepted_after_a_training_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lm, out, trained = make_language_model(tmp_path / "lm"), tmp_path / "reward", tmp_path / "trained"
    assert main(["init", "--from-lm", str(lm), "--out", str(out)]) == 0
    net, tokenizer = AutoModelForSequenceClassification.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    chosen, rejected = (net(**tokenizer(text, return_tensors="pt")).logits[0, 0] for text in ("good", "bad bad"))
    (-torch.nn.functional.logsigmoid(chosen - rejected)).backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    net.save_pretrained(trained)
    tokenizer.save_pretrained(trained)
    file = jsonl(tmp_path / "items.jsonl", TEA)
    assert main(["score", file, "--safety-model", str(out), "--helpfulness-model", ""]) == 1
    assert "untrained head" in capsys.readouterr().err
    assert main(["score", file, "--safety-model", str(trained), "--helpfulness-model", ""]) == 0


def test_init_is_reproducible_and_its_seed_chooses_the_head(tmp_path: Path) -> None:
    lm = make_language_model(tmp_path / "lm")
    heads = []
    for out, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert main(["init", "--from-lm", str(lm), "--out", str(tmp_path / out), "--seed", seed]) == 0
        heads.append(head_of(AutoModelForSequenceClassification.from_pretrained(tmp_path / out))[1].weight)
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_everybody_may_read_what_init_writes_and_a_failure_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm, out = make_language_model(tmp_path / "lm"), tmp_path / "out"
    monkeypatch.setattr("app.checkpoints.new_head.mark_untrained", lambda *_: (_ for _ in ()).throw(OSError("full")))
    assert main(["init", "--from-lm", str(lm), "--out", str(out)]) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lm"]
    monkeypatch.undo()
    assert main(["init", "--from-lm", str(lm), "--out", str(out)]) == 0
    assert {stat.S_IMODE(file.stat().st_mode) for file in out.iterdir()} == {0o644}


def test_init_never_overwrites(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lm = make_language_model(tmp_path / "lm")
    assert main(["init", "--from-lm", str(lm), "--out", str(lm)]) == 1
    assert "is not empty" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["absent", "empty", "a classifier"])
def test_init_takes_causal_language_models_alone(
    tmp_path: Path, safety_dir: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    lm = {"absent": tmp_path / "absent", "empty": tmp_path / "empty", "a classifier": safety_dir}[what]
    (tmp_path / "empty").mkdir()
    assert main(["init", "--from-lm", str(lm), "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert str(lm) in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
