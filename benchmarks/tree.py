"""The tree that is backed up: the same bytes on every machine, and no two blocks alike."""

from __future__ import annotations

import random
from pathlib import Path

SMALL_FILES = 30_000
SMALL_FILES_A_FOLDER = 60
SMALL_BYTES = (256, 8192)
LARGE_FILES = 8
LARGE_BYTES = 128 * 1024 * 1024
_BLOCK = 1024 * 1024
_SEED = 20151


def make_tree(top: Path) -> None:
    """Make 30,000 small files in 500 folders, and 1 GiB in 8 large ones."""
    chance = random.Random(_SEED)
    for number in range(SMALL_FILES):
        path = _small(top, number)
        if number % SMALL_FILES_A_FOLDER == 0:
            path.parent.mkdir(parents=True)
        path.write_bytes(chance.randbytes(chance.randint(*SMALL_BYTES)))
    for number in range(LARGE_FILES):
        with _large(top, number).open("wb") as file:
            for _ in range(LARGE_BYTES // _BLOCK):
                file.write(chance.randbytes(_BLOCK))


def change_one_percent(top: Path, turn: int) -> None:
    """Write one in a hundred small files anew, and one in a hundred of the large files' bytes."""
    chance = random.Random(_SEED + turn)
    for number in chance.sample(range(SMALL_FILES), SMALL_FILES // 100):
        _small(top, number).write_bytes(chance.randbytes(chance.randint(*SMALL_BYTES)))
    with _large(top, turn % LARGE_FILES).open("r+b") as file:
        for _ in range(LARGE_FILES * LARGE_BYTES // 100 // _BLOCK):
            file.seek(chance.randrange(LARGE_BYTES // _BLOCK) * _BLOCK)
            file.write(chance.randbytes(_BLOCK))


def _small(top: Path, number: int) -> Path:
    folder = number // SMALL_FILES_A_FOLDER
    return top / "small" / f"{folder // 25:02}" / f"{folder:03}" / f"file-{number:05}.dat"


def _large(top: Path, number: int) -> Path:
    return top / f"large-{number}.dat"
