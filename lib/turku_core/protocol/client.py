"""The client that sends v1 calls to the API, to one of its URLs after the other.

requests is imported where a call is made: to load it takes as long as all the rest of a command
that makes none.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from turku_core import __version__
from turku_core.errors import ConfigurationError, TryAgainLater, TurkuError

if TYPE_CHECKING:
    import requests

logger = logging.getLogger(__name__)

CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 60.0
CALL_SECONDS = 900.0
"""How long a call may take altogether at one URL, however steadily bytes come: enough for 10 MiB
at 100 kbit/s."""

ANSWER_BYTES_MAX = 64 * 1024 * 1024
"""An answer with 20,000 machines' SSH keys is about 10 MiB."""

_CHUNK_BYTES = 65536
_WORDS_MAX = 500


class ApiUnreachable(TryAgainLater):
    """No URL of the API answered as the API does: the network, a proxy or the API is down."""


class ApiRefused(TurkuError):
    """The API doesn't accept these credentials (403)."""


class ApiInvalid(TurkuError):
    """The API says that a field of the request is missing or not valid (400)."""


class ApiNotFound(TurkuError):
    """The API doesn't know this machine or source for this storage unit (404)."""


class Client:
    """Sends calls to the API.

    A URL that can't be reached, or that answers with a server's error or with something that isn't
    the API's, is left for the next one. An answer that the API did give (200, 400, 403, 404) is
    final, since every URL leads to the same API.

    Args:
        urls: Base URLs such as ``https://turku.example.com/v1``, tried in turn.
        ca_certificate: A PEM file of the authorities to trust instead of the system's.
        timeout: Seconds to connect, and seconds without a byte of the answer.
        call_seconds: Seconds that a call may take altogether at one URL.
    """

    def __init__(
        self,
        urls: Sequence[str],
        ca_certificate: Path | None = None,
        timeout: tuple[float, float] = (CONNECT_SECONDS, ANSWER_SECONDS),
        call_seconds: float = CALL_SECONDS,
    ) -> None:
        if not urls:
            raise ConfigurationError("No URL of the API is configured: set api_url.")
        for url in urls:
            if not url.startswith(("https://", "http://")):
                raise ConfigurationError(
                    f"The API's URL must begin with https://, not {url!a}: mend api_url."
                )
        if ca_certificate is not None and not ca_certificate.is_file():
            raise ConfigurationError(
                f"The API's CA certificate {ca_certificate} isn't there: mend api_ca_certificate."
            )
        import requests

        from turku_core.protocol.deadline import Adapter

        self._urls = tuple(url.rstrip("/") for url in urls)
        self._timeout = timeout
        self._call_seconds = call_seconds
        self._session = requests.Session()
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, Adapter())
        self._session.headers["User-Agent"] = f"turku/{__version__}"
        if ca_certificate is not None:
            self._session.verify = str(ca_certificate)
            # REQUESTS_CA_BUNDLE of the environment would win over the session's setting.
            self._session.trust_env = False

    def call(self, name: str, payload: Mapping[str, Any]) -> dict[str, Any]:
        """Send one call and return the API's answer, a JSON object.

        Args:
            name: The call, such as ``agent_ping_checkin``.
            payload: The request; it may hold secrets and is never logged.

        Raises:
            ApiUnreachable: No URL gave an answer.
            ApiRefused, ApiInvalid, ApiNotFound: The API's own answer.
        """
        body = json.dumps(payload).encode("utf-8")
        problems = []
        not_yet = None
        for url in self._urls:
            try:
                return self._call_one(f"{url}/{name}", body)
            except _NoAnswer as error:
                logger.info("%s: %s", url, error)
                problems.append(f"{url}: {error}")
                not_yet = error.words or not_yet
        if not_yet is not None:
            raise ApiUnreachable(f"The API can't do it now; try again later: {not_yet}")
        raise ApiUnreachable(
            f"The API can't be reached; the call is worth another try later. {'; '.join(problems)}."
        )

    def _call_one(self, url: str, body: bytes) -> dict[str, Any]:
        from turku_core.protocol.deadline import deadline

        with deadline(self._call_seconds) as bound:
            try:
                return self._ask(url, body)
            except _NoAnswer as error:
                if bound.passed:
                    raise _NoAnswer("no answer in time") from error
                raise

    def _ask(self, url: str, body: bytes) -> dict[str, Any]:
        import requests

        try:
            # A redirect is never followed: it would carry the secret elsewhere.
            with self._session.post(
                url,
                data=body,
                headers={"Content-Type": "application/json", "Accept": "application/json"},
                timeout=self._timeout,
                allow_redirects=False,
                stream=True,
            ) as response:
                content = _read_bounded(response)
                is_text = response.headers.get("Content-Type", "").startswith("text/plain")
        except requests.exceptions.SSLError as error:
            raise _NoAnswer(f"its certificate isn't trusted ({_innermost(error)})") from error
        except requests.exceptions.Timeout as error:
            raise _NoAnswer("no answer in time") from error
        except (requests.exceptions.RequestException, UnicodeError) as error:
            raise _NoAnswer(_innermost(error)) from error
        return _answer(response.status_code, content, is_text)


class _NoAnswer(Exception):
    """This URL didn't give an answer of the API; the message says why, without a full stop.

    Attributes:
        words: What the API itself said of why it can't answer yet; None: it wasn't the API.
    """

    def __init__(self, why: str, words: str | None = None) -> None:
        super().__init__(why)
        self.words = words


def _read_bounded(response: requests.Response) -> bytes:
    content = bytearray()
    for chunk in response.iter_content(_CHUNK_BYTES):
        content += chunk
        if len(content) > ANSWER_BYTES_MAX:
            raise _NoAnswer(f"the answer is larger than {ANSWER_BYTES_MAX} bytes")
    return bytes(content)


def _answer(status: int, content: bytes, is_text: bool) -> dict[str, Any]:
    if status == 200:
        try:
            answer = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise _NoAnswer("the answer is not JSON") from error
        if not isinstance(answer, dict):
            raise _NoAnswer("the answer is not a JSON object")
        return answer
    if content.lstrip()[:1] in (b"<", b"{"):
        # The API says in plain words what it refuses; a page is of whatever stands before it.
        raise _NoAnswer(f"the answer has the HTTP status {status}, and isn't the API's")
    words = " ".join(content[: 4 * _WORDS_MAX].decode("utf-8", "replace").split())[:_WORDS_MAX]
    said = ascii(words)[1:-1]
    if status == 400:
        raise ApiInvalid(f"The API did not accept the request: {said}")
    if status == 403:
        raise ApiRefused(
            "The API refused the credentials: the registration key or the secret is wrong or "
            "disabled, or this identity isn't registered."
        )
    if status == 404 and said:
        raise ApiNotFound(f"The API does not know it: {said}")
    # A proxy says these too, for itself or when no API is behind it, but in HTML.
    not_yet = said if status in (429, 503) and is_text and said else None
    raise _NoAnswer(f"the answer has the HTTP status {status}", not_yet)


def _innermost(error: BaseException) -> str:
    """Return the words of the error at the bottom of urllib3's wrapping."""
    seen: BaseException = error
    while True:
        inner = getattr(seen, "reason", None)
        if not isinstance(inner, BaseException):
            inner = next((arg for arg in seen.args if isinstance(arg, BaseException)), None)
        if inner is None:
            inner = seen.__cause__ or seen.__context__
        if inner is None or inner is seen:
            break
        seen = inner
    return str(seen).strip().rstrip(".") or type(seen).__name__
