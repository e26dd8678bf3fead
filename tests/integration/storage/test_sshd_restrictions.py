"""What a machine may do at the storage unit's sshd, tried with the real one and a real ssh."""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.sshd import ADDRESS, Sshd, free_port, running_sshd
from turku_core.credentials import PublicKey
from turku_core.storage.authorized_keys import make_line
from turku_core.storage.templates import render

SECONDS = 30
MACHINE = str(uuid.UUID(int=7))


@pytest.fixture(scope="module")
def sshd() -> Iterator[Sshd]:
    """An sshd with our drop-in and one machine's key, whose forced command tells what it sees."""
    with running_sshd() as plain:
        user = plain.user
    drop_in = render("turku-storage-sshd.conf.j2", user=user, authorized_keys="AUTHORIZED_KEYS")
    # The fixture's folder is known only once it runs, so the file's path comes from its own line.
    drop_in = "".join(
        f"{line}\n" for line in drop_in.splitlines() if "AuthorizedKeysFile" not in line
    )
    with running_sshd(drop_in) as running:
        script = running.folder / "forced command"
        script.write_text(
            '#!/bin/sh\necho "machine=$1"\necho "original=$SSH_ORIGINAL_COMMAND"\n'
            'env | grep -E "^(SNEAKY|DISPLAY|SSH_AUTH_SOCK|LC_ALL)="\n'
            "tty && echo has-tty\ncat >/dev/null\n"
        )
        script.chmod(0o755)
        key = running.make_key("machine")
        public = PublicKey.parse(key.with_suffix(".pub").read_text())
        running.authorized_keys.write_text(make_line(MACHINE, public, [str(script)]) + "\n")
        yield running


def run(sshd: Sshd, *options: str, command: str = "turku-ping-remote") -> tuple[int, str, str]:
    """Run ssh with options; return its exit code and what came on both outputs."""
    done = subprocess.run(
        [*sshd.client_command(sshd.folder / "machine", options), command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
        env={"PATH": "/usr/bin:/bin", "SNEAKY": "yes", "DISPLAY": ":0", "LC_ALL": "C"},
    )
    return done.returncode, done.stdout, done.stderr


@contextlib.contextmanager
def echo_socket(folder: Path) -> Iterator[Path]:
    """Serve a Unix socket that says hello, as the agent's rsync daemon would."""
    path = folder / "socket"
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection:
                        connection.sendall(b"hello")

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield path
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(SECONDS)


def test_a_reverse_tunnel_from_a_port_of_sshds_choice_to_a_unix_socket_works(sshd: Sshd) -> None:
    with echo_socket(sshd.folder) as path:
        client = subprocess.Popen(
            [*sshd.client_command(sshd.folder / "machine", ["-R", f"0:{path}"]), "x"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            assert client.stderr is not None
            found = re.search(r"Allocated port (\d+)", client.stderr.readline())
            assert found is not None
            with socket.create_connection((ADDRESS, int(found[1])), timeout=SECONDS) as tunnel:
                assert tunnel.recv(5) == b"hello"
        finally:
            output, _ = client.communicate(timeout=SECONDS)
    assert f"machine={MACHINE}" in output


def test_a_fielded_agents_own_choice_of_port_works(sshd: Sshd) -> None:
    port = free_port()
    code, output, errors = run(sshd, "-R", f"{port}:127.0.0.1:{port}")
    assert (code, f"machine={MACHINE}" in output) == (0, True), errors


def test_prior_art_06_no_key_forwards_from_the_storage_unit_to_anywhere(sshd: Sshd) -> None:
    service = socket.socket()
    service.bind((ADDRESS, 0))
    service.listen()
    service.settimeout(0.5)
    local = free_port()
    options = ["-L", f"{local}:{ADDRESS}:{service.getsockname()[1]}"]
    client = subprocess.Popen(
        [*sshd.client_command(sshd.folder / "machine", options), "x"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert client.stdout is not None
        client.stdout.readline()
        with socket.create_connection((ADDRESS, local), timeout=SECONDS) as through:
            assert through.recv(1) == b""
        with pytest.raises(TimeoutError):
            service.accept()
    finally:
        service.close()
        _, errors = client.communicate(timeout=SECONDS)
    assert b"administratively prohibited" in errors


def test_prior_art_06_stdin_is_not_forwarded_anywhere_either(sshd: Sshd) -> None:
    code, _, errors = run(sshd, "-W", f"{ADDRESS}:{sshd.port}")
    assert code != 0
    assert "prohibited" in errors


def test_prior_art_06_the_name_in_permitopen_is_no_way_out(sshd: Sshd) -> None:
    code, _, errors = run(sshd, "-W", "none.invalid:1")
    assert (code != 0, "prohibited" in errors) == (True, True)


@pytest.mark.parametrize("host", ["0.0.0.0", "*", "127.0.0.1", "::"])
def test_prior_art_06_no_tunnel_listens_but_on_loopback(sshd: Sshd, host: str) -> None:
    code, output, errors = run(sshd, "-R", f"[{host}]:0:{ADDRESS}:9")
    assert (code, output) == (255, "")
    assert "remote port forwarding failed" in errors


def test_prior_art_06_no_unix_socket_listens_on_the_storage_unit(sshd: Sshd) -> None:
    planted = sshd.folder / "planted"
    code, output, errors = run(sshd, "-R", f"{planted}:{ADDRESS}:9")
    assert (code, output, planted.exists()) == (255, "", False)
    assert "remote port forwarding failed" in errors


def test_prior_art_06_no_terminal(sshd: Sshd) -> None:
    _, output, errors = run(sshd, "-tt")
    assert "has-tty" not in output
    assert "PTY allocation request failed" in errors


def test_prior_art_06_no_x11_no_agent_no_environment(sshd: Sshd) -> None:
    code, output, _ = run(
        sshd, "-X", "-A", "-o", "SetEnv=SNEAKY=yes", "-o", "SendEnv=SNEAKY LC_ALL"
    )
    assert (code, f"machine={MACHINE}" in output) == (0, True)
    assert not re.search(r"^(SNEAKY|DISPLAY|SSH_AUTH_SOCK|LC_ALL)=", output, re.MULTILINE)


@pytest.mark.parametrize("command", ["", "/bin/sh", "internal-sftp"])
def test_prior_art_06_no_command_but_the_forced_one_runs(sshd: Sshd, command: str) -> None:
    _, output, _ = run(sshd, command=command)
    assert output.startswith(f"machine={MACHINE}\noriginal={command}\n")


def test_prior_art_06_no_subsystem_but_the_forced_command_runs(sshd: Sshd) -> None:
    _, output, _ = run(sshd, "-s", command="sftp")
    assert not output or output.startswith(f"machine={MACHINE}\n")


def test_without_the_drop_in_the_key_line_alone_already_forbids_the_rest() -> None:
    with running_sshd() as bare:
        key = bare.make_key("machine")
        public = PublicKey.parse(key.with_suffix(".pub").read_text())
        bare.authorized_keys.write_text(make_line(MACHINE, public, ["/bin/echo"]) + "\n")
        assert run(bare)[:2] == (0, f"{MACHINE}\n")
        assert run(bare, "-W", f"{ADDRESS}:{bare.port}")[0] != 0
        assert run(bare, "-R", f"0.0.0.0:0:{ADDRESS}:9")[0] == 255


def test_a_key_that_is_not_in_the_file_is_refused(sshd: Sshd) -> None:
    stranger = sshd.make_key("stranger")
    done = subprocess.run(
        [*sshd.client_command(stranger), "x"], capture_output=True, text=True, timeout=SECONDS,
        check=False,
    )  # fmt: skip
    assert done.returncode == 255
    assert "Permission denied" in done.stderr


def test_prior_art_22_many_tunnels_at_once_never_collide(sshd: Sshd) -> None:
    clients = [
        subprocess.Popen(
            [*sshd.client_command(sshd.folder / "machine", ["-R", f"0:{ADDRESS}:9"]), "x"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for _ in range(12)
    ]  # fmt: skip
    ports = []
    try:
        for client in clients:
            assert client.stderr is not None
            found = re.search(r"Allocated port (\d+)", client.stderr.readline())
            assert found is not None
            ports.append(found[1])
    finally:
        for client in clients:
            client.communicate(timeout=SECONDS)
    assert len(set(ports)) == len(clients)
