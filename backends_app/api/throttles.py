"""Throttle the requests of a user or an address in fixed windows.

DRF's own throttles read a list, append to it and write it back, so concurrent requests count as
one. Here the cache counts with an atomic operation, in windows that start with the first request.
"""

import ipaddress
import logging
import time

from django.core.cache import cache
from django.http import HttpRequest
from rest_framework.permissions import SAFE_METHODS
from rest_framework.request import Request
from rest_framework.settings import api_settings
from rest_framework.throttling import BaseThrottle, SimpleRateThrottle
from rest_framework.views import APIView

from ..conf import throttle_rates

logger = logging.getLogger(__name__)


class FixedWindow:
    """Counts hits per key in fixed windows, at most `rate` (in DRF's notation) in each."""

    def __init__(self, name: str, rate: str) -> None:
        self._name = name
        limit, window_s = SimpleRateThrottle.parse_rate(None, rate)  # type: ignore[arg-type]
        assert limit is not None
        assert window_s is not None
        self._limit, self._window_s = limit, window_s

    def hit(self, key: str) -> float | None:
        """Count one hit; return the seconds until the window ends when it is full, else None.

        When the cache fails, allow the hit: that is no reason to refuse every request.
        """
        try:
            now = time.time()
            window = f"throttle:{self._name}:{key}"
            cache.add(window, now, self._window_s)
            started_at = cache.get(window, now)
            count = f"{window}:{started_at}"
            cache.add(count, 0, self._window_s)
            if cache.incr(count) <= self._limit:
                return None
            return max(1.0, started_at + self._window_s - now)
        except Exception as error:  # noqa: BLE001 - every cache has errors of its own
            logger.warning("the cache of the throttles failed: %s", type(error).__name__)
            return None

    def refund(self, key: str) -> None:
        """Take back one counted hit."""
        try:
            window = f"throttle:{self._name}:{key}"
            cache.decr(f"{window}:{cache.get(window)}")
        except Exception as error:  # noqa: BLE001 - as above; or the window is over
            logger.debug("no hit to refund: %s", type(error).__name__)


def address_key(request: HttpRequest | Request) -> str:
    """Return the client's address, or its /64 for IPv6, since one client has a whole /64.

    REST_FRAMEWORK["NUM_PROXIES"] is the number of proxies that append to X-Forwarded-For. Without
    it, DRF would believe the whole header, which a client can choose.
    """
    if api_settings.NUM_PROXIES:
        ident = BaseThrottle().get_ident(request) or ""  # type: ignore[arg-type]  # META is enough
    else:
        ident = request.META.get("REMOTE_ADDR") or ""
    try:
        address = ipaddress.ip_address(ident)
    except ValueError:  # a Unix socket
        return "none"
    if address.version == 6:
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, 64), strict=False).network_address)
    return str(address)


class _Throttle(BaseThrottle):
    """Throttles unsafe methods; ISOLATION_THROTTLE_RATES has the rate of its scope."""

    scope: str
    waits: float | None = None

    def allow_request(self, request: Request, view: APIView) -> bool:
        rate = throttle_rates()[self.scope]
        if rate is None or request.method in SAFE_METHODS:
            return True
        self.waits = FixedWindow(self.scope, rate).hit(self.key(request))
        return self.waits is None

    def wait(self) -> float | None:
        return self.waits

    def key(self, request: Request) -> str:
        raise NotImplementedError


class UserThrottle(_Throttle):
    scope = "user"

    def key(self, request: Request) -> str:
        return str(request.user.pk)


class AddressThrottle(_Throttle):
    scope = "address"

    def key(self, request: Request) -> str:
        return address_key(request)
