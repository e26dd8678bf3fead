"""How the API is served: options and gunicorn's settings."""

from __future__ import annotations

import json
import os
import socket
import ssl
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from turku_core.api import serve
from turku_core.api.certificates import ensure_certificates
from turku_core.api.serve import (
    ServeOptions,
    behind_proxies,
    check_files,
    make_gunicorn_settings,
    override,
    read_serve_options,
    with_own_certificate,
)
from turku_core.api.tls import CertificateContext
from turku_core.configuration import read_folder
from turku_core.errors import ConfigurationError


def read(folder: Path, **values: Any) -> ServeOptions:
    (folder / "serve.json").write_text(json.dumps(values))
    return read_serve_options(read_folder(folder))


def test_without_configuration_it_listens_on_loopback_without_tls(tmp_path: Path) -> None:
    assert read(tmp_path) == ServeOptions(listen="127.0.0.1:8000")


def test_the_options_come_from_the_configuration_folder(tmp_path: Path) -> None:
    options = read(
        tmp_path,
        listen="[::]:443",
        certificate="/etc/ssl/turku.crt",
        key="/etc/ssl/turku.key",
        workers=4,
        trusted_proxies=["192.0.2.10", "198.51.100.0/24"],
        database_url="postgresql:///left-alone",
    )
    assert options == ServeOptions(
        listen="[::]:443",
        certificate="/etc/ssl/turku.crt",
        key="/etc/ssl/turku.key",
        workers=4,
        trusted_proxies=("192.0.2.10/32", "198.51.100.0/24"),
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("listen", "443"),
        ("listen", "::1:443"),
        ("listen", "0.0.0.0:99999"),
        ("listen", "-x:443"),
        ("listen", ":443"),
        ("listen", 443),
        ("certificate", "turku.crt"),
        ("key", 5),
        ("workers", -1),
        ("workers", True),
        ("workers", 1000),
        ("trusted_proxies", "192.0.2.10"),
        ("trusted_proxies", ["example.com"]),
        ("certificate_names", "turku.example.com"),
        ("certificate_names", ["a b"]),
    ],
)
def test_a_wrong_option_is_refused_with_its_name_file_and_line(
    tmp_path: Path, name: str, value: object
) -> None:
    with pytest.raises(ConfigurationError, match=r"serve\.json, line 1: " + name):
        read(tmp_path, **{name: value})


def test_the_command_line_overrules_the_configuration_and_is_checked_alike() -> None:
    options = ServeOptions(listen="127.0.0.1:1", workers=3)
    assert override(options, {"listen": "0.0.0.0:8443", "workers": None}) == ServeOptions(
        listen="0.0.0.0:8443", workers=3
    )
    with pytest.raises(ConfigurationError, match="--listen: must be HOST:PORT"):
        override(options, {"listen": "here"})


def test_the_settings_for_gunicorn_on_two_cores() -> None:
    settings = make_gunicorn_settings(ServeOptions(listen="0.0.0.0:8000"), cores=2)
    del settings["ssl_context"], settings["worker_tmp_dir"]
    assert settings == {
        "bind": ["0.0.0.0:8000"],
        "workers": 3,
        "worker_class": "gthread",
        "threads": 8,
        "preload_app": True,
        "timeout": 60,
        "graceful_timeout": 20,
        "keepalive": 5,
        "certfile": None,
        "keyfile": None,
        "forwarded_allow_ips": "127.0.0.1,::1",
        "accesslog": None,
        "errorlog": "-",
        "loglevel": "warning",
        "proc_name": "turku-api",
        "control_socket_disable": True,
    }


@pytest.mark.parametrize(("chosen", "cores", "workers"), [(0, 1, 2), (0, 200, 64), (5, 2, 5)])
def test_there_is_a_worker_for_each_core_and_one_more_unless_chosen(
    chosen: int, cores: int, workers: int
) -> None:
    settings = make_gunicorn_settings(ServeOptions(workers=chosen), cores)
    assert settings["workers"] == workers


def test_a_certificate_without_its_key_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="both a certificate and its key"):
        check_files(ServeOptions(certificate="/etc/ssl/turku.crt"))


def test_a_certificate_that_is_missing_is_named(tmp_path: Path) -> None:
    missing = str(tmp_path / "turku.crt")
    with pytest.raises(ConfigurationError, match=f"{missing} can't be read: No such file"):
        check_files(ServeOptions(certificate=missing, key=missing))


def test_a_certificate_that_does_not_match_its_key_is_refused(
    tmp_path: Path, now: datetime
) -> None:
    one = ensure_certificates(tmp_path / "one", ["localhost"], now)
    two = ensure_certificates(tmp_path / "two", ["localhost"], now)
    check_files(ServeOptions(certificate=str(one.certificate), key=str(one.key)))
    with pytest.raises(ConfigurationError, match="not a certificate and its key"):
        check_files(ServeOptions(certificate=str(one.certificate), key=str(two.key)))


def test_names_for_a_certificate_make_one_with_our_own_ca(tmp_path: Path, now: datetime) -> None:
    options = with_own_certificate(ServeOptions(certificate_names=("localhost",)), tmp_path, now)
    assert options.certificate == str(tmp_path / "server.crt")
    check_files(options)


def test_two_ways_to_a_certificate_are_one_too_many(tmp_path: Path, now: datetime) -> None:
    both = ServeOptions(certificate_names=("localhost",), certificate="/x", key="/y")
    with pytest.raises(ConfigurationError, match="set one or the other"):
        with_own_certificate(both, tmp_path, now)


def test_a_replaced_certificate_is_in_use_at_the_next_connection(
    tmp_path: Path, now: datetime
) -> None:
    made = ensure_certificates(tmp_path, ["localhost"], now)
    files = str(made.certificate), str(made.key)
    context = CertificateContext(*files)

    def default() -> ssl.SSLContext:
        fresh = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        fresh.load_cert_chain(*files)
        return fresh

    first = context(None, default)
    assert context(None, default) is first
    ensure_certificates(tmp_path, ["localhost", "127.0.0.1"], now)
    second = context(None, default)
    assert second is not first

    made.certificate.write_text("half of a certificate")
    assert context(None, default) is second
    os.unlink(made.certificate)
    assert context(None, default) is second


def test_a_client_that_stops_half_way_gives_its_thread_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(serve, "RECEIVE_SECONDS_MAX", 1)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        serve._bound_waiting(listener)
        with socket.create_connection(listener.getsockname()) as client:
            accepted, _ = listener.accept()
            with accepted:
                # As gunicorn's thread does before it reads.
                accepted.setblocking(True)
                client.sendall(b"POST /v1/he")
                assert accepted.recv(100) == b"POST /v1/he"
                with pytest.raises(BlockingIOError):
                    accepted.recv(100)


@pytest.mark.parametrize(
    ("caller", "said", "told"),
    [
        ("192.0.2.1", None, "192.0.2.1"),
        ("192.0.2.1", "203.0.113.9", "192.0.2.1"),
        ("127.0.0.1", None, "127.0.0.1"),
        ("127.0.0.1", "203.0.113.9", "203.0.113.9"),
        ("127.0.0.1", "198.51.100.1, 203.0.113.9", "203.0.113.9"),
        ("127.0.0.1", "198.51.100.1, 203.0.113.9, 10.0.0.4", "203.0.113.9"),
        ("127.0.0.1", "127.0.0.1", "127.0.0.1"),
        ("127.0.0.1", "unknown", "127.0.0.1"),
        ("127.0.0.1", "2001:DB8::1", "2001:db8::1"),
        ("", "203.0.113.9", ""),
    ],
)
def test_the_callers_address_is_believed_from_trusted_proxies_only(
    caller: str, said: str | None, told: str
) -> None:
    seen: dict[str, Any] = {}
    application = behind_proxies(
        lambda environ, _: seen.update(environ), ("127.0.0.1", "10.0.0.0/8")
    )
    environ = {"REMOTE_ADDR": caller}
    application(environ if said is None else {**environ, "HTTP_X_FORWARDED_FOR": said}, None)
    assert seen["REMOTE_ADDR"] == told
