"""Sites for fault tests: with the local executor, and with Celery and their own Redis."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.site import Site
from tests.support.servers import Redis, redis


@pytest.fixture
def sites(tmp_path: Path) -> Iterator[Callable[..., Site]]:
    """Return a factory of sites; all their processes end with the test."""
    made: list[Site] = []

    def make(**env: str) -> Site:
        site = Site(tmp_path, **env)
        made.append(site)
        site.prepare()
        return site

    yield make
    for site in made:
        site.close()


@pytest.fixture
def local(sites: Callable[..., Site]) -> Site:
    return sites()


@pytest.fixture
def broker(tmp_path_factory) -> Iterator[Redis]:
    with redis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def celery(sites: Callable[..., Site], broker: Redis) -> Site:
    return sites(EXECUTOR="celery", BROKER_URL=broker.url)
