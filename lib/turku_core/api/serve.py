"""Serving the API with gunicorn.

The application is loaded once and then forked, so that several worker processes share its memory.
Each worker answers in threads: a client that is slow, or whose TLS handshake is, holds one of
them and not the worker. That costs about a tenth of the idle check-ins a second, of which there
are plenty: docs/reference/api-configuration.md has the numbers.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import ssl
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from gunicorn.app.base import BaseApplication

from turku_core.api.certificates import ensure_certificates
from turku_core.api.tls import CertificateContext
from turku_core.configuration import Merged
from turku_core.errors import ConfigurationError, TurkuError
from turku_core.fields import FieldError, host, integer, port

DEFAULT_LISTEN = "127.0.0.1:8000"
CERTIFICATES = "certificates"
"""The folder of our own CA, below ``var/lib/turku-api``."""

THREADS = 8
"""Threads of a worker. More would only queue in front of the database."""

WORKERS_MAX = 64
ANSWER_SECONDS_MAX = 60
"""A worker that shows no sign of life for so long is replaced."""

STOP_SECONDS_MAX = 20
"""After SIGTERM, how long the requests that are being answered may take."""

KEEPALIVE_SECONDS = 5
RECEIVE_SECONDS_MAX = 15
"""How long a client may leave a thread waiting for its next bytes."""


Application = Callable[[dict[str, Any], Any], Any]
"""A WSGI application (PEP 3333)."""


@dataclass(frozen=True)
class ServeOptions:
    """How the API is served; the options of the same names in ``etc/turku-api/config.d``.

    Attributes:
        listen: ``HOST:PORT``, an IPv6 address in brackets; port 0 takes a free one.
        certificate: The PEM file of the server's certificate and its chain.
        key: The PEM file of its private key.
        certificate_names: The host names and addresses under which machines reach the API, when
            it is to make its certificate with a CA of its own. With neither of the two ways, the
            API speaks plain HTTP.
        workers: Worker processes; 0: one for each core and one more.
        trusted_proxies: Addresses or networks whose word on HTTPS (``X-Forwarded-Proto``) and on
            the caller's address (``X-Forwarded-For``) counts.
    """

    listen: str = DEFAULT_LISTEN
    certificate: str = ""
    key: str = ""
    certificate_names: tuple[str, ...] = ()
    workers: int = 0
    trusted_proxies: tuple[str, ...] = ("127.0.0.1", "::1")


def read_serve_options(merged: Merged) -> ServeOptions:
    """Take the options for serving from the configuration; other keys are left alone.

    Raises:
        ConfigurationError: A value isn't what its option takes; the message names the file.
    """
    chosen: dict[str, Any] = {}
    for field in fields(ServeOptions):
        if field.name in merged.values:
            try:
                chosen[field.name] = _CHECKS[field.name](merged.values[field.name], field.name)
            except FieldError as error:
                raise ConfigurationError(f"{merged.origin(field.name)}: {error}.") from error
    return ServeOptions(**chosen)


def override(options: ServeOptions, given: Mapping[str, Any]) -> ServeOptions:
    """Replace options by those of the command line that were given (not None), checked alike.

    Raises:
        ConfigurationError: A value isn't what its option takes.
    """
    try:
        checked = {
            name: _CHECKS[name](value, f"--{name}")
            for name, value in given.items()
            if value is not None
        }
    except FieldError as error:
        raise ConfigurationError(f"{error}.") from error
    return replace(options, **checked)


def with_own_certificate(options: ServeOptions, folder: Path, now: datetime) -> ServeOptions:
    """Make or renew the certificate of our own CA in `folder`, if the options ask for one.

    Returns:
        The options with the certificate and its key, or as they were.

    Raises:
        ConfigurationError: A name is none, or both ways to a certificate were chosen.
    """
    if not options.certificate_names:
        return options
    if options.certificate or options.key:
        raise ConfigurationError(
            "certificate_names asks for a certificate of our own CA, and certificate and key name "
            "another one: set one or the other."
        )
    made = ensure_certificates(folder, options.certificate_names, now)
    return replace(options, certificate=str(made.certificate), key=str(made.key))


def check_files(options: ServeOptions) -> None:
    """Make sure that the certificate and its key are both named, belong together and can be read.

    Raises:
        ConfigurationError: One is missing, can't be read or isn't what it should be.
    """
    if bool(options.certificate) != bool(options.key):
        raise ConfigurationError(
            "HTTPS needs both a certificate and its key: set both options, or neither."
        )
    for name in filter(None, (options.certificate, options.key)):
        try:
            Path(name).read_bytes()
        except OSError as error:
            raise ConfigurationError(f"{name} can't be read: {error.strerror}.") from error
    if options.certificate:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
                options.certificate, options.key
            )
        except ssl.SSLError as error:
            raise ConfigurationError(
                f"{options.certificate} and {options.key} are not a certificate and its key, in "
                f"PEM form: {error.reason or error}."
            ) from error


def make_gunicorn_settings(options: ServeOptions, cores: int) -> dict[str, Any]:
    """Return gunicorn's settings (docs.gunicorn.org, "Settings") for some options.

    Args:
        options: What the operator chose.
        cores: How many processors there are, for the number of workers when none was chosen.
    """
    return {
        "bind": [options.listen],
        "workers": options.workers or min(cores + 1, WORKERS_MAX),
        "worker_class": "gthread",
        "threads": THREADS,
        "preload_app": True,
        "timeout": ANSWER_SECONDS_MAX,
        "graceful_timeout": STOP_SECONDS_MAX,
        "keepalive": KEEPALIVE_SECONDS,
        "certfile": options.certificate or None,
        "keyfile": options.key or None,
        "ssl_context": CertificateContext(options.certificate, options.key),
        "forwarded_allow_ips": ",".join(options.trusted_proxies),
        # Nobody's address, and no path, is written down for an ordinary call.
        "accesslog": None,
        "errorlog": "-",
        "loglevel": "warning",
        "proc_name": "turku-api",
        # A worker shows that it lives by touching a file, which must never wait for a disk.
        "worker_tmp_dir": "/dev/shm" if os.access("/dev/shm", os.W_OK) else None,
        # Nothing but HTTP: no socket in the home folder through which the server is steered.
        "control_socket_disable": True,
    }


class Server(BaseApplication):  # type: ignore[misc]  # gunicorn comes without types
    """gunicorn with the given settings around the Django application of this process."""

    def __init__(
        self,
        settings: Mapping[str, Any],
        load_application: Callable[[], Any],
        announce: Callable[[str], None],
    ) -> None:
        self._settings = {**settings, "when_ready": self._when_ready}
        self._load_application = load_application
        self._announce = announce
        super().__init__()

    def load_config(self) -> None:
        """Hand the settings over (called by gunicorn, again at a reload)."""
        for name, value in self._settings.items():
            if name in self.cfg.settings:
                self.cfg.set(name, value)

    def load(self) -> Any:
        """Return the WSGI application (called by gunicorn)."""
        return self._load_application()

    def _when_ready(self, arbiter: Any) -> None:
        for listener in arbiter.LISTENERS:
            _bound_waiting(listener.sock)
            self._announce(str(listener))


def serve(options: ServeOptions, load_application: Callable[[], Any]) -> None:
    """Serve until SIGTERM, then let the requests that are being answered end.

    A renewed certificate is in use at the next connection. Once the API listens, one line on
    standard output says where; with port 0 it is the only place that tells.

    Raises:
        ConfigurationError: The certificate or its key is missing.
        TurkuError: The address can't be listened on.
    """
    check_files(options)
    _check_address(options.listen)
    settings = make_gunicorn_settings(options, len(os.sched_getaffinity(0)))
    Server(
        settings,
        lambda: behind_proxies(load_application(), options.trusted_proxies),
        _announce,
    ).run()


def behind_proxies(application: Application, proxies: Sequence[str]) -> Application:
    """Return a WSGI application that is told the caller's address and not its proxy's.

    Each proxy adds the address that it was called from to ``X-Forwarded-For``, at the end. The last
    one that isn't a trusted proxy's own is the caller's; what stands before it, anybody can write.
    """
    networks = [ipaddress.ip_network(proxy) for proxy in proxies]

    def is_proxy(address: str) -> bool:
        return any(ipaddress.ip_address(address) in network for network in networks)

    def call(environ: dict[str, Any], start_response: Any) -> Any:
        said = environ.get("HTTP_X_FORWARDED_FOR", "").split(",")
        # A ValueError: what was said is no address, or the API listens on no network.
        with contextlib.suppress(ValueError):
            while said and is_proxy(environ["REMOTE_ADDR"]):
                environ["REMOTE_ADDR"] = str(ipaddress.ip_address(said.pop().strip()))
        return application(environ, start_response)

    return call


def _check_address(listen: str) -> None:
    """Bind once before gunicorn does, which would try for five seconds and tell little."""
    name, _, number = listen.rpartition(":")
    family = socket.AF_INET6 if name.startswith("[") else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind((name.strip("[]"), int(number)))
    except OSError as error:
        raise TurkuError(f"{listen} can't be listened on: {error.strerror}.") from error


def _announce(address: str) -> None:
    print(f"The API listens on {address}", flush=True)


def _bound_waiting(listener: socket.socket) -> None:
    """Let accepted connections give up waiting; on Linux they take it from the listener.

    gunicorn's threads otherwise wait without end for a client that stopped half-way.
    """
    listener.setsockopt(
        socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", RECEIVE_SECONDS_MAX, 0)
    )


def _listen(value: object, field: str) -> str:
    text = value if isinstance(value, str) else ""
    name, colon, number = text.rpartition(":")
    bracketed = name.startswith("[") and name.endswith("]")
    if not colon or not number.isdecimal() or (":" in name and not bracketed):
        raise FieldError(field, "must be HOST:PORT, such as 0.0.0.0:443 or [::]:443")
    host(name[1:-1] if bracketed else name, field)
    if number != "0":
        port(int(number), field)
    return text


def _path(value: object, field: str) -> str:
    if not isinstance(value, str) or not Path(value).is_absolute():
        raise FieldError(field, "must be the absolute path of a file")
    return value


def _names(value: object, field: str) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise FieldError(field, 'must be a list of names, such as ["turku.example.com"]')
    return tuple(host(item, field) for item in value)


def _workers(value: object, field: str) -> int:
    return integer(value, field, 0, WORKERS_MAX)


def _proxies(value: object, field: str) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise FieldError(field, 'must be a list of addresses, such as ["192.0.2.10"]')
    try:
        return tuple(str(ipaddress.ip_network(item)) for item in value)
    except ValueError as error:
        raise FieldError(field, "must hold addresses or networks, such as 192.0.2.0/24") from error


_CHECKS: dict[str, Callable[[object, str], Any]] = {
    "listen": _listen,
    "certificate": _path,
    "key": _path,
    "certificate_names": _names,
    "workers": _workers,
    "trusted_proxies": _proxies,
}
