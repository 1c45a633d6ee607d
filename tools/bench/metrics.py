"""The cost of metrics per request: the same server with and without them, side by side."""

import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from tests.support.programs import running
from tests.support.servers import LISTENING

from .http import ROUNDS, SERVER, Load
from .ratios import Ratio, at_least, in_turns


def ratios() -> Iterator[Ratio]:
    with ExitStack() as stack:
        ports = []
        for settings in ("tools.bench.settings", "tools.bench.unmeasured"):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            server = running(SERVER, LISTENING, folder, DJANGO_SETTINGS_MODULE=settings)
            ports.append(int(stack.enter_context(server)[0]))
        loads = [Load(port, "/v1/backends") for port in ports]
        for load in loads:
            load.response()
        time.sleep(3)  # the probes that the first request started
        for load in loads:
            load.rate()  # to warm up
        counted, bare = in_turns(ROUNDS, *(load.rate for load in loads))
        yield at_least(0.85, "GET /v1/backends, counted : not counted", counted, bare)
