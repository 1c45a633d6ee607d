"""`python -m tests.conformance`: compare third-party suites on backends and plain runtimes."""

import argparse
import os
import sys
from contextlib import closing

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "vulcan_site.settings")
django.setup()

from backends_app.backends.base import Backend  # noqa: E402 - behind django.setup()
from backends_app.backends.isolate import IsolateBackend  # noqa: E402
from backends_app.backends.microvm import MicroVMBackend  # noqa: E402
from tests.backends.microvm.conftest import images  # noqa: E402
from tests.conformance.cases import Case  # noqa: E402
from tests.conformance.suites import SUITES, sample  # noqa: E402
from tests.support.programs import ROOT  # noqa: E402

MAX_TESTS = 1000  # per suite; larger suites are sampled
PAGE = ROOT / "docs" / "conformance.md"
HEAD = """# Conformance: suites of others

Made by `make conformance`, which fetches the suites by the package clients of the host, and runs
each test on the backend and, beside it, by the plain runtime. `npm` are packages that esbuild
bundles, with a few lines that use each, on the Node.js of machines. `test262` are its parser tests,
sampled, on Deno (the whole of test262 is in no package). `CPython` and `Go` are the tests of the
standard libraries in the root that machines have, without a machine. WASI is compared on
[a page of its own](wasi.md).

| suite | backend | tried | same | explained | other |
|---|---|---|---|---|---|
"""


def main() -> None:
    arguments = argparse.ArgumentParser(prog="python -m tests.conformance", description=__doc__)
    arguments.add_argument("suites", nargs="*", help=f"of {', '.join(SUITES)}")
    arguments.add_argument("--sample", type=int, help="how many tests of each suite")
    options = arguments.parse_args()
    if unknown := {*options.suites} - {*SUITES}:
        arguments.error(f"there is no suite {', '.join(unknown)}")
    rows, notes, other = [], [], 0
    with (
        closing(IsolateBackend()) as isolate,
        closing(MicroVMBackend(folder=str(images()), accelerator="any")) as microvm,
    ):
        backends: dict[str, Backend] = {"isolate": isolate, "microvm": microvm}
        for suite in options.suites or SUITES:
            found: list[Case] = []
            for case in sample(suite, options.sample or MAX_TESTS, backends):
                found.append(case)
                if not case.same and not case.why:
                    print(f"{suite} {case.backend} {case.name}\n  ours:  {case.ours[:600]!r}")
                    print(f"  plain: {case.plain[:600]!r}", flush=True)
            for backend in dict.fromkeys(case.backend for case in found):
                these = [case for case in found if case.backend == backend]
                differ = [case for case in these if not case.same]
                explained = [case for case in differ if case.why]
                other += len(differ) - len(explained)
                row = (suite, f"`{backend}`", len(these), len(these) - len(differ), len(explained))
                rows.append(f"| {' | '.join(map(str, row))} | {len(differ) - len(explained)} |")
                for why in dict.fromkeys(case.why for case in explained):
                    affected = [case.name for case in explained if case.why == why]
                    shown = ", ".join(affected[:8]) + (", …" if len(affected) > 8 else "")
                    notes.append(f"- {suite} on `{backend}`, {len(affected)}: {why} ({shown})")
                print(rows[-1], flush=True)
    if not options.sample:
        _write_page(rows, notes, {*(options.suites or SUITES)})
    sys.exit(f"{other} tests differ without a reason" if other else 0)


def _write_page(rows: list[str], notes: list[str], suites: set[str]) -> None:
    """Write the results of these suites; keep the page's results of the others."""
    kept = PAGE.read_text().splitlines() if PAGE.exists() else []
    for suite in {*SUITES} - suites:
        rows += [line for line in kept if line.startswith(f"| {suite} |")]
        notes += [line for line in kept if line.startswith(f"- {suite} on ")]
    order = [*SUITES]
    rows.sort(key=lambda row: order.index(row.split(" | ")[0].removeprefix("| ")))
    text = HEAD + "\n".join(rows) + "\n"
    if notes:
        text += "\nThe differences that are explained:\n\n" + "\n".join(sorted(notes)) + "\n"
    PAGE.write_text(text)


if __name__ == "__main__":
    main()
