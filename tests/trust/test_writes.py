"""Every write of the packages goes through `analysis.records.files`: the source is searched for others."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("objectives", "toy_bandits", "llm_runs", "analysis", "paper_figures")

# Calls that write a file where they are methods of anything, and where they are of the named modules.
METHODS = {
    *(
        "write_text",
        "write_bytes",
        "to_parquet",
        "to_csv",
        "to_json",
        "to_pickle",
        "savefig",
        "tofile",
        "touch",
        "symlink_to",
    ),
    *(
        "save_file",
        "savez",
        "savez_compressed",
        "savetxt",
        "save_pretrained",
        "save_to_disk",
        "save_model",
        "extractall",
    ),
    *("mkdtemp", "mkstemp", "NamedTemporaryFile", "TemporaryDirectory", "OSFile", "ParquetWriter", "rename"),
}
OF_MODULES = {
    *(
        "torch.save",
        "np.save",
        "json.dump",
        "pickle.dump",
        "joblib.dump",
        "os.rename",
        "os.replace",
    ),
    *(
        "shutil.copy",
        "shutil.copy2",
        "shutil.copyfile",
        "shutil.copytree",
        "shutil.move",
        "card.save",
        "card(read_run(record)).save",
    ),
}
# What is right although it is not the one place: file and call, and why.
RIGHT = {
    "objectives/documentation.py: temporary.write_text": "objectives imports no other package: its own temporary file",
    "objectives/documentation.py: temporary.replace": "the same",
    "toy_bandits/frontiers/command.py: drawn.savefig": "into the handle of atomic_write",
    "toy_bandits/leaderboard/figures.py: figure.savefig": "into the handle of atomic_write",
    "toy_bandits/profile/card.py: figure.savefig": "into the handle of atomic_write",
    "paper_figures/drawing.py: figure.savefig": "into the handle of atomic_write",
    "analysis/records/runs.py: frame.to_parquet": "into memory",
    "analysis/records/runs.py: temporary.replace": "tables that were all staged first",
    "llm_runs/assets.py: content.extractall": "into a folder of atomic_folder",
    "llm_runs/data/loading.py: formats.rename": "columns",
    "llm_runs/data/report.py: pa.parquet.ParquetWriter": "into the handle of atomic_write",
    "llm_runs/data/store.py: pa.OSFile": "a part under its temporary name, then `publish`",
    "llm_runs/data/store.py: np.save": "into the handle of atomic_write",
    "llm_runs/engines.py: model.save_pretrained": "a copy for another process, deleted after it",
    "llm_runs/engines.py: tokenizer.save_pretrained": "the same",
    "llm_runs/engines.py: tempfile.TemporaryDirectory": "the same",
    "llm_runs/models.py: model.save_pretrained": "into a folder of atomic_folder",
    "llm_runs/models.py: tokenizer.save_pretrained": "into a folder of atomic_folder",
    "llm_runs/pipeline.py: frame.to_parquet": "into memory",
    "llm_runs/processes.py: open": "nowhere: the output of all processes but the first",
    "llm_runs/reference.py: np.save": "into the handle of atomic_write",
    "llm_runs/rewards.py: np.savez_compressed": "into the handle of atomic_write",
    "llm_runs/sampling.py: own.open": "a journal: read up to its last whole line, each batch synced",
    "llm_runs/sweeps/stages.py: (target / name).symlink_to": "one step of the system: there or not",
    "llm_runs/sweeps/work.py: path.open": "a log for people, read by nothing",
    "llm_runs/verify.py: tempfile.mkdtemp": "where steps are made again, deleted after it",
    "llm_runs/training.py: Path('/proc/self/clear_refs').write_text": "a switch of the system",
}


def writes(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of every call that writes a file, or has the name of one that does."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        whole = ast.unparse(node.func)
        name = whole.rpartition(".")[2]
        if name in ("open", "fdopen"):
            words = [*node.args, *(keyword.value for keyword in node.keywords)]
            modes = {a.value for a in words if isinstance(a, ast.Constant) and isinstance(a.value, str)}
            writing = any(re.fullmatch(r"[rwaxbt+]{1,3}", mode) and set(mode) & set("wax+") for mode in modes)
            if writing or re.search(r"O_(WRONLY|RDWR|CREAT)", ast.unparse(node)):
                yield node.lineno, whole
        elif whole in OF_MODULES:
            yield node.lineno, whole
        elif not isinstance(node.func, ast.Attribute):
            continue
        elif name == "replace":  # of a path it has one argument; of a string two, of a dataclass named ones
            if len(node.args) == 1 and not node.keywords:
                yield node.lineno, whole
        elif name in ("rename", "to_csv", "to_json") and not node.args:  # of columns; to a string
            continue
        elif name in METHODS:
            yield node.lineno, whole


def test_the_reader_of_writes_sees_every_form() -> None:
    lines = (
        *(
            "open(p, 'w')",
            "p.open('ab')",
            "io.open(p, mode='x')",
            "os.open(p, os.O_WRONLY | os.O_CREAT)",
            "p.write_text(t)",
        ),
        *("p.replace(q)", "os.replace(p, q)", "torch.save(x, p)", "frame.to_parquet(p)", "model.save_pretrained(p)"),
    )
    assert [line for line, _ in writes("\n".join(lines))] == list(range(1, len(lines) + 1))
    for reading in ("open(p)", "p.open('rb')", "'a'.replace('a', 'b')", "replace(x, y=1)", "p.read_text()"):
        assert not list(writes(reading))


def test_every_write_is_whole_or_not_at_all() -> None:
    found = {}
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("*.py")):
            name = str(file.relative_to(ROOT))
            if name not in (
                "analysis/records/files.py",
                "analysis/records/locks.py",
            ):  # the one place, and locks, which hold nothing
                found |= {
                    f"{name}: {call}": f"{name}:{line}" for line, call in writes(file.read_text(encoding="utf-8"))
                }
    new = [f"{place}: {call.partition(': ')[2]}" for call, place in found.items() if call not in RIGHT]
    assert not new, "write through analysis.records (atomic_write, atomic_folder, publish): " + "; ".join(new)
    assert set(RIGHT) <= set(found), "gone, so take it out of RIGHT"
