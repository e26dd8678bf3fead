"""The session's rsync daemon against honest and hostile clients; all rsyncs are real."""

from __future__ import annotations

import os
import selectors
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.trees import describe_tree, differences, make_odd_tree
from turku_core.agent import rsync_daemon
from turku_core.agent.rsync_daemon import (
    MODULE_PATH_BYTES_MAX,
    RESTORE_MODULE,
    Module,
    RsyncDaemon,
    make_module,
    unmunge_links,
)

# rsync's client speaks to the program's standard input and output (rsync(1), RSYNC_CONNECT_PROG).
CONNECT = """
import os, selectors, socket, sys
peer = socket.socket(socket.AF_UNIX)
os.chdir(sys.argv[1])
peer.connect("rsync")
selector = selectors.DefaultSelector()
selector.register(0, selectors.EVENT_READ)
selector.register(peer, selectors.EVENT_READ)
while True:
    for key, _ in selector.select():
        try:
            data = os.read(key.fd, 65536)
        except ConnectionResetError:
            sys.exit()
        if key.fd == 0:
            if data:
                peer.sendall(data)
            else:
                peer.shutdown(socket.SHUT_WR)
                selector.unregister(0)
        elif data:
            os.write(1, data)
        else:
            sys.exit()
"""

TWICE = range(2)
"""A sticky folder's ACL is whole only then, as rsync writes it."""


class Served:
    """A daemon that runs in a thread, and a client for it."""

    def __init__(self, folder: Path, modules: list[Module]) -> None:
        self.folder = folder
        self.modules = {module.name: module for module in modules}
        self._stop_read, self._stop_write = socket.socketpair()
        self._thread = threading.Thread(target=self._serve, args=(modules,))
        self._ready = threading.Event()
        self._thread.start()
        assert self._ready.wait(20)

    def _serve(self, modules: list[Module]) -> None:
        daemon = RsyncDaemon(self.folder, modules)
        self._ready.set()
        selector = selectors.DefaultSelector()
        selector.register(daemon, selectors.EVENT_READ)
        selector.register(self._stop_read, selectors.EVENT_READ)
        while self._stop_read not in [key.fileobj for key, _ in selector.select()]:
            daemon.accept()
        daemon.close()

    def close(self) -> None:
        self._stop_write.send(b"x")
        self._thread.join()

    def rsync(
        self, *arguments: str, password: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run rsync's client; ``NAME:PATH`` among the arguments is made a URL of the module."""
        words = []
        for argument in arguments:
            name, colon, path = argument.partition(":")
            if colon and name in self.modules:
                module = self.modules[name]
                words.append(f"rsync://{module.username}@turku/{name}{path}")
                password = password or module.password
            else:
                words.append(argument)
        script = self.folder.parent / "connect.py"
        script.write_text(CONNECT)
        return subprocess.run(
            ["rsync", *words],
            env={
                "PATH": os.environ["PATH"],
                "RSYNC_CONNECT_PROG": f"{sys.executable} {script} {self.folder}",
                "RSYNC_PASSWORD": password or "",
            },
            capture_output=True,
            text=True,
            errors="surrogateescape",
            timeout=60,
            check=False,
        )


Serve = Callable[..., Served]


@pytest.fixture(
    params=[pytest.param("chroot", marks=pytest.mark.needs_root), "rsync alone"], autouse=True
)
def confinement(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Serve as root does it (in a chroot), and as any other user does it."""
    if request.param == "rsync alone":
        monkeypatch.setattr(rsync_daemon, "uses_chroot", lambda: False)
    return str(request.param)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    session = tmp_path / "session"
    session.mkdir(mode=0o700)
    return session


@pytest.fixture
def serve(folder: Path) -> Iterator[Serve]:
    started: list[Served] = []

    def start(*modules: Module) -> Served:
        started.append(Served(folder, list(modules)))
        return started[-1]

    yield start
    for each in started:
        each.close()


def test_a_whole_tree_is_read_as_it_is(serve: Serve, tmp_path: Path) -> None:
    tree, copy = tmp_path / "tree", tmp_path / "copy"
    make_odd_tree(tree, as_root=os.geteuid() == 0)
    served = serve(make_module("docs", tree))
    for _ in TWICE:
        done = served.rsync("-aHAXS", "--numeric-ids", "docs:/", f"{copy}/")
        assert done.returncode == 0, done.stderr
    assert differences(describe_tree(tree), describe_tree(copy)) == []


@pytest.mark.parametrize(
    "name",
    [
        "with spaces  in it",
        " leading",
        "trailing ",
        "%HOME% and %RSYNC_USER_NAME%",
        "100%%PATH%%",
        "#hash",
        ";semicolon = value",
        "[module]",
        "back\\slash\\",
        "naïve-日本語",
        os.fsdecode(b"latin-\xe9"),
        "quote'\"$(id)`id`",
        "x" * 250,
    ],
)
def test_a_path_of_any_name_is_served(serve: Serve, tmp_path: Path, name: str) -> None:
    tree = tmp_path / name
    tree.mkdir()
    (tree / "file").write_text("content")
    done = serve(make_module("docs", tree)).rsync("-a", "docs:/", f"{tmp_path}/copy/")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "copy/file").read_text() == "content"


def test_a_path_of_the_greatest_length_is_served(serve: Serve, tmp_path: Path) -> None:
    tree = tmp_path
    while (left := MODULE_PATH_BYTES_MAX - len(str(tree)) - 1) > 0:
        tree = tree / ("d" * min(left, 200 if left == 201 else 201))
    assert len(str(tree)) in (MODULE_PATH_BYTES_MAX, MODULE_PATH_BYTES_MAX - 1)
    tree.mkdir(parents=True)
    (tree / "file").write_text("content")
    done = serve(make_module("docs", tree)).rsync("-a", "docs:/", f"{tmp_path}/copy/")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "copy/file").read_text() == "content"


def test_a_path_over_a_symbolic_link_is_served(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "real/data").mkdir(parents=True)
    (tmp_path / "real/data/file").write_text("content")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    served = serve(make_module("docs", tmp_path / "link/data"))
    assert served.rsync("-a", "docs:/", f"{tmp_path}/copy/").returncode == 0
    assert (tmp_path / "copy/file").read_text() == "content"


@pytest.fixture
def secretive(tmp_path: Path) -> Path:
    """A tree with things that are left out, and links that lead to them and away."""
    tree = tmp_path / "tree"
    (tree / "private/deep").mkdir(parents=True)
    (tree / "private/deep/key").write_text("SECRET")
    (tree / "id.key").write_text("SECRET")
    (tree / "# odd ").write_text("SECRET")
    (tree / "; odd").write_text("SECRET")
    (tree / "open").write_text("open")
    (tree / "way-in").symlink_to("private")
    (tree / "way-to-key").symlink_to("private/deep/key")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("SECRET")
    (tree / "way-out").symlink_to(outside)
    return tree


RULES = ("- *.key", "- /private/", "- # odd ", "- ; odd")


def test_prior_art_07_an_honest_client_doesnt_get_what_is_excluded(
    serve: Serve, secretive: Path, tmp_path: Path
) -> None:
    served = serve(make_module("docs", secretive, RULES))
    done = served.rsync("-a", "docs:/", f"{tmp_path}/copy/")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "copy").iterdir()) == [
        "open",
        "way-in",
        "way-out",
        "way-to-key",
    ]


@pytest.mark.parametrize(
    "request_",
    [
        ("-a", "docs:/private/deep/key"),
        ("-a", "docs:/private/"),
        ("-a", "docs:/id.key"),
        ("-a", "docs:/way-in/"),
        ("-a", "docs:/way-in/deep/key"),
        ("-aR", "docs:/./way-in/./deep/key"),
        ("-a", "docs:/way-out/"),
        ("-a", "docs:/way-out/file"),
        ("-a", "docs:/../outside/"),
        ("-a", "docs://way-in/"),
        ("-aL", "docs:/"),
        ("-rL", "docs:/"),
        ("-a", "--copy-unsafe-links", "docs:/"),
        ("-ak", "docs:/"),
        ("-a", "--copy-dirlinks", "docs:/"),
        ("-aK", "docs:/"),
        ("-a", "--include=*", "--filter=!", "docs:/"),
        ("-a", "--filter=+ *.key", "--filter=+ private/***", "docs:/"),
        ("-a", "--files-from=/proc/self/environ", "--from0", "docs:/"),
        ("-a", "--no-implied-dirs", "-R", "docs:/way-in/deep/"),
        ("-a", "--delete-excluded", "docs:/"),
        ("-a", "-M--insecure-links", "docs:/way-in/"),
        ("-a", "-M--copy-links", "docs:/"),
        ("-a", "-M--copy-devices", "docs:/"),
        ("-a", "--trust-sender", "docs:/ docs/way-in/"),
    ],
)
def test_prior_art_07_a_hostile_client_doesnt_get_what_is_excluded(
    serve: Serve, secretive: Path, tmp_path: Path, request_: tuple[str, ...]
) -> None:
    served = serve(make_module("docs", secretive, RULES))
    copy = tmp_path / "copy"
    served.rsync(*request_, f"{copy}/")
    got = [path for path in copy.rglob("*") if path.is_file() and not path.is_symlink()]
    assert [path for path in got if "SECRET" in path.read_text()] == []


def test_prior_art_07_names_of_excluded_things_arent_listed_either(
    serve: Serve, secretive: Path
) -> None:
    done = serve(make_module("docs", secretive, RULES)).rsync("-r", "docs:/")
    assert done.returncode == 0
    assert "open" in done.stdout
    assert "key" not in done.stdout.replace("way-to-key", "")
    assert "deep" not in done.stdout


def test_modules_are_neither_listed_nor_open_without_the_password(
    serve: Serve, tmp_path: Path
) -> None:
    (tmp_path / "tree").mkdir()
    served = serve(make_module("docs", tmp_path / "tree"))
    assert served.rsync("rsync://turku/").stdout == ""
    denied = served.rsync("-a", "docs:/", f"{tmp_path}/copy/", password="wrong")
    assert denied.returncode == 5
    assert "auth failed" in denied.stderr


def test_one_module_isnt_opened_by_another_ones_password(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    one, two = make_module("one", tmp_path / "one"), make_module("two", tmp_path / "two")
    served = serve(one, two)
    url = f"rsync://{two.username}@turku/one/"
    assert served.rsync("-a", url, f"{tmp_path}/copy/", password=two.password).returncode == 5


@pytest.mark.parametrize("option", ["--remove-source-files", "-M--remove-source-files", "-a"])
def test_nothing_is_changed_in_a_source(serve: Serve, tmp_path: Path, option: str) -> None:
    tree, other = tmp_path / "tree", tmp_path / "other"
    tree.mkdir()
    other.mkdir()
    (tree / "file").write_text("content")
    (other / "new").write_text("new")
    served = serve(make_module("docs", tree))
    served.rsync("-a", option, "docs:/", f"{tmp_path}/copy/")
    assert served.rsync("-a", "--delete", f"{other}/", "docs:/").returncode != 0
    assert [path.name for path in tree.iterdir()] == ["file"]


def test_a_restore_writes_a_whole_tree_back(serve: Serve, tmp_path: Path, confinement: str) -> None:
    tree, target = tmp_path / "tree", tmp_path / "target"
    make_odd_tree(tree, as_root=os.geteuid() == 0)
    target.mkdir()
    served = serve(make_module(RESTORE_MODULE, target, writable=True))
    for _ in TWICE:
        done = served.rsync("-aHAXS", "--numeric-ids", f"{tree}/", f"{RESTORE_MODULE}:/")
        assert done.returncode == 0, done.stderr
    if confinement == "rsync alone":
        unmunge_links(target)
    assert differences(describe_tree(tree), describe_tree(target)) == []


def test_a_restores_module_cant_be_read_and_nothing_is_deleted_in_it(
    serve: Serve, tmp_path: Path
) -> None:
    target, empty = tmp_path / "target", tmp_path / "empty"
    target.mkdir()
    empty.mkdir()
    (target / "kept").write_text("kept")
    served = serve(make_module(RESTORE_MODULE, target, writable=True))
    assert served.rsync("-a", f"{RESTORE_MODULE}:/", f"{tmp_path}/copy/").returncode != 0
    assert served.rsync("-a", "--delete", f"{empty}/", f"{RESTORE_MODULE}:/").returncode != 0
    assert (target / "kept").exists()


def test_a_restore_never_leads_out_of_its_folder(serve: Serve, tmp_path: Path) -> None:
    target, outside, evil = tmp_path / "target", tmp_path / "outside", tmp_path / "evil"
    for each in (target, outside, evil):
        each.mkdir()
    (evil / "link").symlink_to(outside)
    served = serve(make_module(RESTORE_MODULE, target, writable=True))
    served.rsync("-a", f"{evil}/", f"{RESTORE_MODULE}:/")
    (evil / "link").unlink()
    (evil / "link").mkdir()
    (evil / "link/file").write_text("planted")
    served.rsync("-aK", f"{evil}/", f"{RESTORE_MODULE}:/")
    served.rsync("-a", f"{evil}/link/file", f"{RESTORE_MODULE}:/link/file")
    served.rsync("-a", f"{evil}/link/file", f"{RESTORE_MODULE}:/../outside/file")
    assert list(outside.iterdir()) == []


def test_prior_art_08_the_sessions_secrets_are_for_its_user_alone(
    serve: Serve, folder: Path, tmp_path: Path
) -> None:
    module = make_module("docs", tmp_path)
    serve(module)
    for path in folder.iterdir():
        if not path.is_socket():
            assert path.stat().st_mode & 0o077 == 0, path
    assert module.password not in (folder / "rsyncd.conf").read_text()
    assert module.password not in repr(module)
