"""A unit on a throwaway copy of this host: a real user, real owners, sshd's real word.

There is no systemd there, so the worker is run by the test, as the unit's user.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.unit.charms.storage.live_unit import FORMER_UID

pytestmark = pytest.mark.needs_root
TREE = Path(__file__).resolve().parents[4]

ON_A_COPY = """
set -eu
mount -t tmpfs tmpfs "$1"
mkdir "$1/upper" "$1/work" "$1/root" "$1/tree-upper" "$1/tree-work"
mount -t overlay overlay "$1/root" -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work"
cd "$1/root"
mount -t proc proc proc
mount --rbind /dev dev
mount -t tmpfs tmpfs run
mount -t tmpfs tmpfs tmp
mkdir -p ".$2"
# The tree may lie on a file system of its own, which the copy of / doesn't have.
mount -t overlay overlay ".$2" -o "lowerdir=$2,upperdir=$1/tree-upper,workdir=$1/tree-work"
# The unit's user runs these very programs, wherever they lie; only the copy is changed for it.
for place in "$3" "$4" "$2"; do
    while [ "$place" != / ]; do chmod a+rx ".$place"; place=$(dirname "$place"); done
done
shift 4
exec chroot . "$@"
"""


def live(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    """Let a unit live on a copy, and return what was found."""
    copy = tmp_path / "copy"
    copy.mkdir()
    program = [sys.executable, "-m", "tests.unit.charms.storage.live_unit", *arguments]
    inside = ["sh", "-c", f'cd "{TREE}" && exec "$@"', "sh", *program]
    places = [str(TREE), sys.executable, os.path.realpath(sys.executable)]
    done = subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", "sh", "-c", ON_A_COPY, "sh", str(copy),
         *places, *inside],
        env={**os.environ, "PYTHONPATH": f"{TREE}:{TREE}/charms/turku-storage/src"},
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_everything_belongs_to_whom_it_should(tmp_path: Path) -> None:
    found = live(tmp_path)
    name, words = found["status"]
    assert (name, words.partition(":")[0]) == ("active", "data"), words
    assert found["shown to agents"] == "turku-storage"
    assert found["runs"]
    assert found["volume"] == "drwx------ turku-storage:turku-storage"
    assert found["folder"] == "drwxr-x--- 0:turku-storage"
    assert found["secret"] == "-rw-r----- 0:turku-storage"
    assert found["state"] == found["home"] == "drwx------ turku-storage:turku-storage"
    assert found["usage"] == []
    assert found["after detaching"] == [False, -15], "sessions end, so that nothing holds it"
    assert found["later"]
    assert found["left"] == ["/etc/turku-storage/config.d/90-operator.json"]


def test_a_new_unit_takes_over_the_backups_of_a_lost_one(tmp_path: Path) -> None:
    found = live(tmp_path, "taken-over")
    assert found["status"][0] == "active", found["status"]
    assert found["uid"] == FORMER_UID
    assert found["usage"] == []
