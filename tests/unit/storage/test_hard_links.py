"""Which names of a tree stay one file."""

from __future__ import annotations

import os
from pathlib import Path

from turku_core.storage import hard_links


def make(folder: Path, *groups: list[str]) -> None:
    for names in groups:
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            if name == names[0]:
                (folder / name).write_text(name)
            else:
                os.link(folder / names[0], folder / name)


def inodes(folder: Path, *names: str) -> list[int]:
    return [(folder / name).stat().st_ino for name in names]


def test_only_one_name_of_a_file_is_kept(tmp_path: Path) -> None:
    make(tmp_path, ["a", "b", "deep/c"], ["alone"], ["x", "deep/y"])
    hard_links.keep_one_name(tmp_path)
    left = sorted(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    assert left == ["a", "alone", "x"]


def test_names_stay_one_file_that_rsync_said_are_one(tmp_path: Path) -> None:
    make(tmp_path, ["a", "b", "c", "deep/d", "a => b"])
    os.setxattr(tmp_path / "a", "user.test", b"kept")
    os.utime(tmp_path / "a", ns=(1, 2))
    os.utime(tmp_path / "deep", ns=(3, 4))
    hard_links.separate(tmp_path, {b"b => a", b"deep/d => c", b"a => b => nothing"})
    a, b, c, d, odd = inodes(tmp_path, "a", "b", "c", "deep/d", "a => b")
    assert a == b
    assert c == d
    assert len({a, c, odd}) == 3
    assert (tmp_path / "c").read_text() == "a"
    assert (tmp_path / "c").stat().st_mtime_ns == 2
    assert os.getxattr(tmp_path / "c", "user.test") == b"kept"
    assert (tmp_path / "deep").stat().st_mtime_ns == 4
    assert sorted(os.listdir(tmp_path)) == ["a", "a => b", "b", "c", "deep"]


def test_a_name_as_rsync_prints_it_is_read_back() -> None:
    assert hard_links.unescaped(b"new\\#012line \\#134#012 \\ \\#9") == b"new\nline \\#012 \\ \\#9"
