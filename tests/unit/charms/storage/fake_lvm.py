"""LVM's commands for hosts without a device-mapper: a fake that keeps its state in a file.

What isn't LVM's is real: the devices are loop devices, and the logical volume is one as well, as
large as what was given to it, so that making a file system, mounting by UUID and growing online are
the kernel's own. Each command holds to the rules that matter: it refuses what real LVM refuses.

Run as ``pvcreate`` and so on, by links in a folder at the head of the PATH, where this file is
`FAKE_LVM` itself; the state lies beside them.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

COMMANDS = ("pvcreate", "vgcreate", "vgextend", "lvcreate", "lvextend", "vgchange", "pvs", "lvs")
EXTENT = 4 * 1024 * 1024
DETACH_SECONDS = 30.0


def fail(words: str) -> NoReturn:
    """End as LVM's commands do."""
    print(f"  {words}", file=sys.stderr)
    sys.exit(5)


class Fake:
    """The state: physical volumes by path, groups' UUIDs, and the one logical volume."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "state.json"
        self.state: dict[str, Any] = {"pvs": {}, "vgs": {}, "lv": None}
        if self.file.exists():
            self.state = json.loads(self.file.read_text())

    def save(self) -> None:
        self.file.write_text(json.dumps(self.state, indent=1))

    @property
    def backing(self) -> Path:
        return self.folder / "backups.img"

    @property
    def node(self) -> Path:
        return self.folder / "dev-turku-backups"

    def free(self, path: str) -> int:
        volume = self.state["pvs"][path]
        return int(volume["size"] - volume["used"])

    def take(self, paths: list[str]) -> None:
        """Give the logical volume what is free on these devices."""
        extents = sum(self.free(path) for path in paths)
        if not extents:
            fail("No free extents.")
        for path in paths:
            self.state["pvs"][path]["used"] = self.state["pvs"][path]["size"]
        size = self.backing.stat().st_size if self.backing.exists() else 0
        with self.backing.open("ab") as file:
            file.truncate(size + extents)

    def pvcreate(self, path: str) -> None:
        if path in self.state["pvs"] and self.state["pvs"][path]["vg"]:
            fail(f"Can't initialize physical volume {path} of volume group without -ff.")
        size = int(run("blockdev", "--getsize64", path)) // EXTENT * EXTENT
        self.state["pvs"][path] = {"vg": "", "size": size, "used": 0}

    def vgcreate(self, group: str, path: str) -> None:
        if group in self.state["vgs"]:
            fail(f"A volume group called {group} already exists.")
        self.state["vgs"][group] = f"uuid-of-{group}"
        self.join(group, path)

    def vgextend(self, group: str, path: str) -> None:
        if group not in self.state["vgs"]:
            fail(f'Volume group "{group}" not found')
        self.join(group, path)

    def join(self, group: str, path: str) -> None:
        if self.state["pvs"].get(path, {"vg": "?"})["vg"]:
            fail(f"{path} is no physical volume, or is in a group already.")
        self.state["pvs"][path]["vg"] = group

    def lvcreate(self, *arguments: str) -> None:
        if list(arguments) != ["--yes", "-l", "100%FREE", "-n", "backups", "turku"]:
            fail(f"the fake doesn't know {arguments}")
        if self.state["lv"] is not None:
            fail('Logical Volume "backups" already exists in volume group "turku"')
        self.take([path for path, volume in self.state["pvs"].items() if volume["vg"] == "turku"])
        self.state["lv"] = "inactive"
        self.activate()

    def lvextend(self, name: str, path: str) -> None:
        if name != "turku/backups" or self.state["lv"] is None:
            fail("Failed to find logical volume")
        self.take([path])
        if self.state["lv"] == "active":
            run("losetup", "--set-capacity", os.path.realpath(self.node))

    def vgchange(self, option: str, which: str, group: str) -> None:
        if option != "--activate" or group not in self.state["vgs"]:
            fail(f'Volume group "{group}" not found')
        if which == "y" and self.state["lv"] == "inactive":
            self.activate()
        elif which == "n" and self.state["lv"] == "active":
            device = os.path.realpath(self.node)
            mounts = Path("/proc/mounts").read_text().splitlines()
            if any(line.split()[0] == device for line in mounts):
                fail("Logical volume turku/backups contains a filesystem in use.")
            detach(device)
            self.node.unlink()
            self.state["lv"] = "inactive"

    def activate(self) -> None:
        if any(self.is_missing(path) for path in self.state["pvs"]):
            fail("Refusing activation of partial LV turku/backups.")
        self.node.unlink(missing_ok=True)
        self.node.symlink_to(run("losetup", "--find", "--show", str(self.backing)).strip())
        self.state["lv"] = "active"

    def is_missing(self, path: str) -> bool:
        gone = self.folder / "gone"
        return gone.exists() and path in gone.read_text().split()

    def pvs(self) -> None:
        rows = [
            {
                "pv_name": "[unknown]" if self.is_missing(path) else path,
                "vg_name": volume["vg"],
                "vg_uuid": self.state["vgs"].get(volume["vg"], ""),
                "pv_free": str(self.free(path) if volume["vg"] else volume["size"]),
                "pv_missing": "missing" if self.is_missing(path) else "",
            }
            for path, volume in self.state["pvs"].items()
            # A device that is gone is known to its group alone.
            if volume["vg"] or not self.is_missing(path)
        ]
        groups = {volume["vg"] for path, volume in self.state["pvs"].items()
                  if not self.is_missing(path)}  # fmt: skip
        self.report("pv", [row for row in rows if row["vg_name"] in groups])

    def lvs(self) -> None:
        seen = any(volume["vg"] and not self.is_missing(path)
                   for path, volume in self.state["pvs"].items())  # fmt: skip
        row = {
            "vg_name": "turku",
            "lv_name": "backups",
            "lv_path": str(self.node),
            "lv_active": "active" if self.state["lv"] == "active" else "",
        }
        self.report("lv", [row] if self.state["lv"] is not None and seen else [])

    def report(self, kind: str, rows: list[dict[str, str]]) -> None:
        if sys.argv[1:6] != ["--reportformat", "json", "--units", "b", "--nosuffix"]:
            fail("the fake reports JSON in bytes alone")
        columns = sys.argv[7].split(",")
        print(json.dumps({"report": [{kind: [{c: row[c] for c in columns} for row in rows]}]}))


def run(*command: str) -> str:
    """Run a real program."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def detach(device: str) -> None:
    """Detach a loop device, and wait until it is.

    Who looks at all devices for a UUID holds it open, and it stays until then (loop(4)): a mount
    by UUID finds the one that goes, beside the one that came after it.
    """
    run("losetup", "--detach", device)
    deadline = time.monotonic() + DETACH_SECONDS
    while Path("/sys/block", Path(device).name, "loop/backing_file").exists():
        if time.monotonic() > deadline:
            fail(f"{device} is in use.")
        time.sleep(0.01)


def main() -> None:
    """Be the command that this was called as."""
    name = Path(sys.argv[0]).name
    fake = Fake(Path(sys.argv[0]).parent)
    with (fake.folder / "calls").open("a") as file:
        file.write(" ".join([name, *sys.argv[1:]]) + "\n")
    if name in ("pvs", "lvs"):
        getattr(fake, name)()
    else:
        getattr(fake, name)(*sys.argv[1:])
        fake.save()


@dataclass
class FakeLvm:
    """The fake, as a test sees it: loop devices to attach, and what was called."""

    folder: Path

    def environment(self) -> dict[str, str]:
        """Return the variables with which programs find this LVM's commands and volume."""
        return {
            "PATH": f"{self.folder}:{os.environ['PATH']}",
            # libblkid believes what it saw of a device in the last two seconds. The volume's has
            # another number each time, unlike LVM's own, and its former one may be another's now.
            "BLKID_FILE": "/dev/null",
        }

    def device(self, name: str, mebibytes: int = 200) -> Path:
        """Return a new, empty loop device."""
        image = self.folder / f"{name}.img"
        with image.open("wb") as file:
            file.truncate(mebibytes * 1024 * 1024)
        return Path(run("losetup", "--find", "--show", str(image)).strip())

    @property
    def calls(self) -> list[str]:
        """The commands that changed anything, in order."""
        file = self.folder / "calls"
        lines = file.read_text().splitlines() if file.exists() else []
        return [line for line in lines if line.split()[0] not in ("pvs", "lvs")]

    def lose(self, *devices: Path) -> None:
        """Let LVM no longer see these devices; without any, it sees all again."""
        (self.folder / "gone").write_text(" ".join(map(str, devices)))

    def reboot(self) -> None:
        """Let every logical volume be inactive, as before LVM's own activation at boot."""
        if Fake(self.folder).state["lv"] == "active":
            run(str(self.folder / "vgchange"), "--activate", "n", "turku")

    def boot(self) -> None:
        """Activate, as LVM does by itself at boot."""
        run(str(self.folder / "vgchange"), "--activate", "y", "turku")


@contextlib.contextmanager
def fake_lvm(folder: Path) -> Iterator[FakeLvm]:
    """Put the fake's commands into a folder; see `FakeLvm.environment`."""
    folder.mkdir()
    script = folder / "fake_lvm.py"
    script.write_text(f"#!{sys.executable}\n{Path(__file__).read_text()}")
    script.chmod(0o755)
    for name in COMMANDS:
        (folder / name).symlink_to(script)
    try:
        yield FakeLvm(folder)
    finally:
        for line in run(
            "losetup", "--list", "--noheadings", "--output", "NAME,BACK-FILE"
        ).splitlines():
            words = line.split()
            if len(words) > 1 and words[1].startswith(f"{folder}/"):
                subprocess.run(["umount", "--all-targets", "--quiet", words[0]], check=False)
                subprocess.run(["losetup", "--detach", words[0]], check=False)


if __name__ == "__main__":
    main()
