"""Throttles: how much one user, or all who come from one address, may ask for in a while.

DRF's own read a list, add to it and write it again, so many requests at once are as good as one;
here the cache counts, by an operation that is whole, in windows that begin with a first request.
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

logger = logging.getLogger(__name__)


class Counter:
    """Counts what happens for a key, `rate` (as DRF writes it) in a window at the most."""

    def __init__(self, name: str, rate: str) -> None:
        self._name = name
        most, window_s = SimpleRateThrottle.parse_rate(None, rate)  # type: ignore[arg-type]
        assert most is not None
        assert window_s is not None
        self._most, self._window_s = most, window_s

    def take(self, key: str) -> float | None:
        """Count one more; for how many seconds there is no more to be had, or None.

        A cache that does not answer stops nobody: it is no reason to refuse everything.
        """
        try:
            now = time.time()
            begins = f"throttle:{self._name}:{key}"
            cache.add(begins, now, self._window_s)
            begun = cache.get(begins, now)
            count = f"{begins}:{begun}"
            cache.add(count, 0, self._window_s)
            if cache.incr(count) <= self._most:
                return None
            return max(1.0, begun + self._window_s - now)
        except Exception as error:  # noqa: BLE001 - every cache has errors of its own
            logger.warning("the cache of the throttles failed: %s", type(error).__name__)
            return None

    def give_back(self, key: str) -> None:
        """One that was counted is not to count."""
        try:
            begins = f"throttle:{self._name}:{key}"
            cache.decr(f"{begins}:{cache.get(begins)}")
        except Exception as error:  # noqa: BLE001 - as above; or its window is over
            logger.debug("nothing to give back: %s", type(error).__name__)


def address_key(request: HttpRequest | Request) -> str:
    """Whose address it is: of IPv6 one household or machine has a whole /64."""
    given = BaseThrottle().get_ident(request) or ""  # type: ignore[arg-type]  # META is enough
    try:
        address = ipaddress.ip_address(given)
    except ValueError:  # a socket of the host's
        return "none"
    if address.version == 6:
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, 64), strict=False).network_address)
    return str(address)


class _Throttle(BaseThrottle):
    """For what changes something; DEFAULT_THROTTLE_RATES has the rate of its scope."""

    scope: str
    waits: float | None = None

    def allow_request(self, request: Request, view: APIView) -> bool:
        rate = api_settings.DEFAULT_THROTTLE_RATES.get(self.scope)
        if rate is None or request.method in SAFE_METHODS:
            return True
        self.waits = Counter(self.scope, str(rate)).take(self.key(request))
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
