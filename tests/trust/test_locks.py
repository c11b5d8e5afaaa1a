"""Two commands on one folder: the second says who the first is and stops; a killed one blocks nobody."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from analysis.records import LockError, RecordError, atomic_folder, files, locks, sole, write_run, write_unlocked
from llm_runs import __main__ as llm
from llm_runs.account import Step
from toy_bandits.__main__ import main as bandits

HOLDER = "import sys, time; from analysis.records import sole\nwith sole(sys.argv[1]): print('held', flush=True); time.sleep(60)"


@pytest.fixture
def held(tmp_path: Path) -> subprocess.Popen[str]:
    """Another process at work in tmp_path/run."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "run")],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_the_second_says_who_the_first_is_and_a_killed_one_blocks_nobody(
    held: subprocess.Popen[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    with pytest.raises(LockError) as caught, sole(out):
        pass
    words = str(caught.value)
    assert words.startswith(f"{out}: process {held.pid} on {socket.gethostname()}, since {time.strftime('%Y-')}")
    assert words.endswith("is at work there: wait for it, or end it, and give the command again")
    assert llm.main(["run", "tiny", "--out", str(out)]) == 2
    assert f"error: {out}: process {held.pid} on" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == [files.LOCK]  # nothing was touched
    half = out / ".results.parquet.123.0badc0de.tmp"
    half.write_text("half a tab")
    held.send_signal(signal.SIGKILL)
    held.wait()
    with sole(out):
        assert not half.exists()
    assert not list(out.iterdir())


def test_every_kind_of_bandit_record_has_its_lock(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands = {
        "ablation": ["run", "ablation"],
        "": ["leaderboard", "dpo", "--only", "likelihood", "--workers", "1"],
        "rso/bradley_terry-1": ["loop", "rso"],
    }
    for folder, words in commands.items():
        with sole(tmp_path / folder):
            assert bandits([*words, "--out", str(tmp_path)]) == 2
        assert f"process {os.getpid()} on" in capsys.readouterr().err


def test_what_the_runs_of_a_folder_share_is_locked_until_the_first_training(tmp_path: Path) -> None:
    with llm._sole(tmp_path) as release:
        for kind in ("fetch", "reward", "sft", "sample", "label", "reference", "before"):
            release(Step("", kind, lambda: None))
            with pytest.raises(LockError), sole(tmp_path):
                pass
        release(Step("", "train", lambda: None))
        with sole(tmp_path):
            pass


def test_locks_that_do_not_work_are_said_and_can_be_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", missing)
    with (
        pytest.raises(LockError, match=rf"locks do not work there \(No locks available\).*{locks.SWITCH}=1"),
        sole(tmp_path / "a"),
    ):
        pass
    monkeypatch.setenv(locks.SWITCH, "1")
    with sole(tmp_path / "b"):
        assert not list((tmp_path / "b").iterdir())


def test_a_lock_whose_file_was_removed_meanwhile_is_taken_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between opening the file and locking it, its holder gives it back, which removes it: what was opened is nobody's lock."""
    path, real, removed = tmp_path / "lock", fcntl.flock, []

    def flock(descriptor: int, how: int) -> None:
        if not removed:
            removed.append(path)
            path.unlink()
        real(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with locks.locked(path) as mine:
        assert mine and removed
        with locks.locked(path, wait=False) as again:
            assert not again


def test_only_what_is_ours_is_cleared_away(tmp_path: Path) -> None:
    """Half files of the folder go; those of a subfolder in which somebody may be at work stay, and so do files of other names."""
    left = (".run.json.1.00000000.tmp", "deep/.model.77.abcdef01.tmp/half.safetensors")
    kept = ("table.tmp", ".notes.tmp", "runs/b/.lock", "runs/b/.run.json.2.00000001.tmp")
    for name in (*left, *kept):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    with sole(tmp_path):
        found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert found == {*kept, files.LOCK}


def test_of_a_page_alone_only_what_killed_writers_of_it_left_is_cleared_away(tmp_path: Path) -> None:
    """Its folder may be anybody's: temporary files of other names, and of other writers below, stay."""
    kept = (".other.html.2.00000001.tmp", ".page.html.tmp", "below/.page.html.3.00000002.tmp")
    for name in (".page.html.1.00000000.tmp", *kept):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    write_unlocked(tmp_path / "page.html", b"new")
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert found == {*kept, "page.html"}


def test_a_page_waits_for_another_writer_and_takes_nothing_of_it(tmp_path: Path) -> None:
    """The other's temporary file is there until its write is done; only then is what is left looked at."""
    unfinished, seen = tmp_path / ".page.html.1.00000000.tmp", []

    def second() -> None:
        write_unlocked(tmp_path / "page.html", b"second")
        seen.append(unfinished.exists())

    other = threading.Thread(target=second)
    with locks.locked(tmp_path / ".page.html.lock"):
        unfinished.write_text("half")
        other.start()
        other.join(1)
        assert other.is_alive() and unfinished.exists()
    other.join()
    assert seen == [False] and (tmp_path / "page.html").read_bytes() == b"second"


@pytest.mark.parametrize("switch", ["", "1"])
def test_a_page_is_written_where_locks_do_not_work(
    switch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", missing)
    monkeypatch.setenv(locks.SWITCH, switch)
    (tmp_path / ".page.html.1.00000000.tmp").write_text("maybe another's")
    assert write_unlocked(tmp_path / "page.html", b"new").read_bytes() == b"new"
    assert (tmp_path / ".page.html.1.00000000.tmp").exists()


def test_a_folder_appears_whole_or_not_at_all_and_is_replaced_whole(tmp_path: Path) -> None:
    folder = tmp_path / "model"

    def fails(empty: Path) -> None:
        (empty / "half").write_text("")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(RecordError, match=r"model: cannot be written \(No space left"):
        atomic_folder(folder, fails)
    assert not list(tmp_path.iterdir())
    atomic_folder(folder, lambda empty: (empty / "first").write_text("1"))
    atomic_folder(folder, lambda empty: (empty / "second").write_text("2"))  # who comes later finds it there
    assert [path.name for path in folder.iterdir()] == ["first"]
    with pytest.raises(RecordError):
        atomic_folder(folder, fails, replace=True)
    assert [path.name for path in folder.iterdir()] == ["first"]
    atomic_folder(folder, lambda empty: (empty / "second").write_text("2"), replace=True)
    assert [path.name for path in folder.iterdir()] == ["second"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_failed_command_leaves_no_empty_folder_and_no_lock(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), sole(tmp_path / "new"):
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())
    with pytest.raises(RecordError), sole(tmp_path / "new"):
        write_run(tmp_path / "new", kind="bandit", id="a", config={"x": object()}, seeds={}, tables={})
    assert not list(tmp_path.iterdir())


def test_a_worker_ends_with_the_process_that_it_works_for(tmp_path: Path) -> None:
    """Killed with SIGKILL, a command cannot tell its workers: they notice."""
    code = (
        "import multiprocessing, os, sys, time\n"
        "from analysis.records.locks import end_with_parent\n"
        "def work():\n    end_with_parent()\n    open(sys.argv[1], 'w').write(str(os.getpid()))\n    time.sleep(60)\n"
        "if __name__ == '__main__':\n    multiprocessing.get_context('fork').Process(target=work).start()\n    time.sleep(60)"
    )
    note = tmp_path / "pid"
    process = subprocess.Popen([sys.executable, "-c", code, str(note)], cwd=Path(__file__).parents[2])
    _until(lambda: note.is_file() and note.read_text())
    worker = int(note.read_text())
    process.kill()
    process.wait()
    _until(lambda: not _running(worker))


def _running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def _until(condition: object, patience: float = 20) -> None:
    end = time.monotonic() + patience
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.02)
