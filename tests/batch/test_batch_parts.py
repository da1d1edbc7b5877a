"""The output folder: whole parts or none, one job at a time, nothing of another job."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rayenv import pa, pd, pq, rows_of

from gprune.batch import parts
from gprune.batch.engine import ANSWERED
from gprune.batch.parts import opened

SETTINGS: dict[str, Any] = {"input": "photos", "keep": 0.3}


def rows(*ids: str) -> pa.Table:
    return pa.Table.from_pylist([{"id": id, "answer": id.upper()} for id in ids], schema=ANSWERED)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*"))


def test_parts_are_numbered_on_and_read_by_others(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "out.parquet"
    with opened(folder, SETTINGS, size=3) as out:
        assert len(out.done()) == 0
        out.add(rows("a", "b"))
        assert not list(folder.glob("part-*"))
        out.add(rows("c", "d"))
        assert names(folder) == [".lock", "_settings.json", "part-000000.parquet"]
        out.add(rows("e"))
    with opened(folder, SETTINGS, size=1) as out:
        assert sorted(out.done()["id"].to_pylist()) == ["a", "b", "c", "d", "e"]
        out.add(rows("f"))
    assert names(folder) == [".lock", "_settings.json", *(f"part-{i:06d}.parquet" for i in range(3))]
    table = pd.read_parquet(folder)
    assert list(table["id"]) == list("abcdef") and list(table["answer"]) == list("ABCDEF")
    assert list(table.columns) == ANSWERED.names


def test_rows_that_have_waited_long_make_a_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PATIENCE", 0.05)
    with opened(tmp_path / "out", SETTINGS, size=100) as out:
        out.add(rows("a"))
        assert not list((tmp_path / "out").glob("part-*"))
        time.sleep(0.06)
        out.add(rows("b"))
        assert [row["id"] for row in rows_of(tmp_path / "out")] == ["a", "b"]


def test_what_waits_is_written_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), opened(tmp_path / "out", SETTINGS, size=100) as out:
        out.add(rows("a"))
        raise KeyboardInterrupt
    assert [row["id"] for row in rows_of(tmp_path / "out")] == ["a"]


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"input": "photos", "keep": 0.5}, "made with keep=0.3, wanted is 0.5"),
        ({"input": "photos"}, "made with keep=0.3, wanted is None"),
        ({**SETTINGS, "model": "x"}, "made with model=None, wanted is 'x'"),
    ],
)
def test_other_settings(tmp_path: Path, changed: dict[str, Any], reason: str) -> None:
    folder = tmp_path / "out"
    with opened(folder, SETTINGS, size=1):
        pass
    with opened(folder, changed, size=1):
        pass  # there is no row yet
    with opened(folder, SETTINGS, size=1) as out:
        out.add(rows("a"))
    with pytest.raises(ValueError, match=reason), opened(folder, changed, size=1):
        pass
    assert [row["id"] for row in rows_of(folder)] == ["a"]


def test_one_token_is_not_all_of_them(tmp_path: Path) -> None:
    with opened(tmp_path / "out", {"keep": 1}, size=1) as out:
        out.add(rows("a"))
    with (
        pytest.raises(ValueError, match=r"made with keep=1, wanted is 1\.0"),
        opened(tmp_path / "out", {"keep": 1.0}, 1),
    ):
        pass


def test_what_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "photo.png").write_text("x")
    for folder, error, reason in [
        (tmp_path / "file", OSError, "cannot be made or written"),
        (tmp_path / "file" / "below", OSError, "cannot be made or written"),
        (tmp_path / "full", ValueError, "is a folder with other files"),
        (Path("/proc/nowhere"), OSError, "cannot be made or written"),
    ]:
        with pytest.raises(error, match=reason), opened(folder, SETTINGS, size=1):
            raise AssertionError
    assert names(tmp_path) == ["file", "full"] and names(tmp_path / "full") == ["photo.png"]


def test_a_job_that_is_at_work(tmp_path: Path) -> None:
    with opened(tmp_path / "out", SETTINGS, size=1) as out:
        out.add(rows("a"))
        with pytest.raises(ValueError, match="in use by another job"), opened(tmp_path / "out", SETTINGS, size=1):
            raise AssertionError
        out.add(rows("b"))
    assert [row["id"] for row in rows_of(tmp_path / "out")] == ["a", "b"]


def test_a_damaged_part(tmp_path: Path) -> None:
    with opened(tmp_path / "out", SETTINGS, size=1) as out:
        out.add(rows("a"))
        out.add(rows("b"))
    part = tmp_path / "out" / "part-000000.parquet"
    part.write_bytes(part.read_bytes()[:100])
    with opened(tmp_path / "out", SETTINGS, size=1) as out:
        with pytest.raises(ValueError, match=r"part-000000\.parquet cannot be read .* delete it"):
            out.done()
        part.unlink()
        assert out.done()["id"].to_pylist() == ["b"]
        out.add(rows("c"))
    assert [row["id"] for row in rows_of(tmp_path / "out")] == ["b", "c"]


def test_a_part_has_its_name_when_it_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "out"
    seen: list[list[str]] = []

    def write_half(table: Any, file: Any) -> None:
        file.write(b"PAR1 half of it")
        file.flush()
        seen.append(names(folder))
        raise OSError("no space left")

    with opened(folder, SETTINGS, size=1) as out:
        with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="no space left"):
            patch.setattr(parts.pq, "write_table", write_half)
            out.add(rows("a"))
        assert [name for name in seen[0] if name.startswith("part")] == []
        assert names(folder) == [".lock", "_settings.json"]
    assert [row["id"] for row in rows_of(folder)] == ["a"]


FULL = """
import resource, sys
from pathlib import Path
sys.path[:0] = {path!r}
from test_batch_parts import SETTINGS, rows
from gprune.batch.parts import opened
with opened(Path({folder!r}), SETTINGS, size=2) as out:
    out.add(rows("a", "b"))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
    try:
        out.add(rows("c", "d"))
    except RuntimeError as error:
        print(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
"""


def test_a_full_disk(tmp_path: Path) -> None:
    """A limit of the operating system on the size of files fails in the middle of a part, as a full disk does."""
    folder = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-c", FULL.format(path=sys.path, folder=str(folder))], capture_output=True, text=True
    )
    assert "part-000001.parquet cannot be written" in done.stdout and "1 parts before it are intact" in done.stdout
    assert done.returncode == 0, done.stderr
    # What could not be written was not lost: there was room again before the job ended.
    assert [row["id"] for row in rows_of(folder)] == ["a", "b", "c", "d"]
    assert sorted(path.name for path in folder.iterdir()) == [
        ".lock",
        "_settings.json",
        "part-000000.parquet",
        "part-000001.parquet",
    ]


def test_a_job_killed_while_it_writes(tmp_path: Path) -> None:
    with opened(tmp_path / "out", SETTINGS, size=1) as out:
        out.add(rows("a"))
    (tmp_path / "out" / ".part-000007.parquet.tmp").write_bytes(b"PAR1 half of it")
    assert [row["id"] for row in rows_of(tmp_path / "out")] == ["a"]
    with opened(tmp_path / "out", SETTINGS, size=1) as out:
        out.add(rows("b"))
    assert [row["id"] for row in rows_of(tmp_path / "out")] == ["a", "b"]
    assert not list((tmp_path / "out").glob(".*.tmp"))
    assert pq.read_schema(tmp_path / "out" / "part-000001.parquet").equals(ANSWERED)


READ_ONLY = """
import sys
from pathlib import Path
from gprune.batch.parts import opened
try:
    with opened(Path(sys.argv[1]), {}, size=1):
        print("opened")
except OSError as error:
    print(error)
"""


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    """Also where root runs the test, who would else be allowed to."""
    as_others = [] if os.geteuid() else ["setpriv", "--bounding-set=-dac_override"]
    tmp_path.chmod(0o555)
    for folder in (tmp_path, tmp_path / "out"):
        done = subprocess.run(
            [*as_others, sys.executable, "-c", READ_ONLY, str(folder)], capture_output=True, text=True
        )
        assert f"output {folder} cannot be made or written" in done.stdout, done.stderr
        assert "Permission denied" in done.stdout and not list(tmp_path.iterdir())
