"""The way of a v1 call past the middleware that only the administration site needs."""

from __future__ import annotations

from collections.abc import Callable

from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase
from django.urls import resolve

# Loaded with the application and not with the first call, so that all workers count together.
from turku_core.api import limits  # noqa: F401


class ProtocolFirst:
    """Answers calls under ``/v1/`` at once: no session, no cookie, no CSRF token is looked at."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        if not request.path_info.startswith("/v1/"):
            return self.get_response(request)
        try:
            match = resolve(request.path_info)
        except Http404:
            return HttpResponse("There is no such call.", status=404, content_type="text/plain")
        response: HttpResponseBase = match.func(request, *match.args, **match.kwargs)
        return response
