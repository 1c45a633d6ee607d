"""`manage.py run_workload`: run a program in isolation and exit with its exit code."""

import json
import signal
import sys
from argparse import ArgumentParser
from base64 import b64encode
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import DatabaseError

from ...api.serializers.workloads import WorkloadSerializer
from ...backends import progress
from ...conf import limits
from ...exceptions import VulcanError
from ...execution.lifecycle import Submission
from ...executors import get_executor
from ...health import PROBE_TIMEOUT_S
from ...models import Workload
from ...routing import RUNTIMES, parse_isolation
from ...utils import strict_json
from ...utils.text import short_repr
from ...workloads import AUTO, ExitReason, WorkloadSpec, output_from_stdout
from ..output import add_format, print_json, progress_bar, sanitize, spinner

RUNTIME_OF_SUFFIX = {
    ".js": "node",
    ".mjs": "node",
    ".ts": "node",
    ".mts": "node",
    ".py": "python",
    ".go": "go",
    ".wasm": "wasm",
}
ARCHIVE_SUFFIXES = (".tar.gz", ".tgz")
NOT_RUN = 125  # as `docker run` exits when the failure is not the program's
EXIT_CODES = {ExitReason.TIMEOUT: 124, ExitReason.MEMORY_LIMIT: 137, ExitReason.KILLED: 137}


class Command(BaseCommand):
    help = (
        "Run a program and exit with its exit code (124: timeout, 137: out of memory or killed, "
        "128 + n: terminated by signal n, 125: it could not be run). Its stdout and stderr are "
        "printed; a returned output is printed to stdout as JSON, unless stdout is just that."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "file",
            nargs="?",
            help="A source file, an archive (.tar.gz, .tgz), or - for stdin.",
        )
        parser.add_argument(
            "command",
            nargs="*",
            help="After --: the command for an image or an archive, or a module's arguments.",
        )
        parser.add_argument("--code", help="Source code instead of a file.")
        parser.add_argument("--image", help="An OCI image instead of a file.")
        parser.add_argument(
            "--runtime",
            help=f"One of {', '.join(RUNTIMES)}. Default: by the file's suffix, or node.",
        )
        parser.add_argument(
            "--isolation",
            default=AUTO,
            help="auto (default), a backend, or several separated by commas.",
        )
        parser.add_argument("--input", default="null", help="The program's input, as JSON.")
        parser.add_argument("--timeout", type=float, metavar="SECONDS", help="Time limit.")
        parser.add_argument("--memory", type=int, metavar="MB", help="Memory limit.")
        parser.add_argument("--cpus", type=float, metavar="N", help="CPU limit.")
        parser.add_argument(
            "--async",
            action="store_true",
            dest="submit",
            help="Submit it, print its id and exit; a server or a worker runs it.",
        )
        parser.add_argument(
            "--rerun-if-lost",
            action="store_true",
            help="Run it again if its worker is lost and the result is unknown.",
        )
        add_format(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        executor = get_executor()
        try:
            submission = Submission(
                spec=self._spec(options), rerun_if_lost=options["rerun_if_lost"]
            )
            executor.wait_for_health(PROBE_TIMEOUT_S)
            if options["submit"]:
                workload = executor.submit(submission)
            else:
                with progress.use(progress_bar), spinner("Running"):
                    workload = executor.run(submission)
        except VulcanError as error:
            raise CommandError(str(error), returncode=NOT_RUN) from error
        except DatabaseError as error:
            reason = f"Cannot record the workload: {error}. Was manage.py migrate run?"
            raise CommandError(reason, returncode=NOT_RUN) from error
        if options["format"] == "json":
            print_json(self, WorkloadSerializer(workload).data)
        elif options["submit"]:
            self.stdout.write(workload.pk)
            if not executor.live_nodes():
                self.stderr.write("No server or worker is running to process it.", style_func=str)
        else:
            self._show(workload)
        if not options["submit"] and (code := exit_code(workload)):
            sys.exit(code)

    def _spec(self, options: dict[str, Any]) -> WorkloadSpec:
        file, command = options["file"], options["command"]
        if options["image"] is not None and file is not None:
            file, command = None, [file, *command]
        sources = (file, options["code"], options["image"])
        if sum(source is not None for source in sources) != 1:
            raise CommandError(
                "Provide exactly one of: a file, --code, --image.", returncode=NOT_RUN
            )
        try:
            program_input = strict_json.loads(options["input"])
        except strict_json.InvalidJSON as error:
            raise CommandError(f"--input is not JSON: {error}.", returncode=NOT_RUN) from error
        code, archive, suffix = options["code"], None, ""
        if file is not None and file.lower().endswith(ARCHIVE_SUFFIXES):
            archive = _bytes(file)
            if options["runtime"] is None:
                raise CommandError("An archive needs --runtime.", returncode=NOT_RUN)
        elif file is not None:
            code, suffix = _read(file)
        default_runtime = None if options["image"] else RUNTIME_OF_SUFFIX.get(suffix, "node")
        return WorkloadSpec(
            runtime=options["runtime"] or default_runtime,
            isolation=parse_isolation(options["isolation"]),
            code=code,
            archive=archive,
            image=options["image"],
            command=tuple(command),
            input=program_input,
            resources=limits().resources(
                cpus=options["cpus"], mem_mb=options["memory"], timeout_s=options["timeout"]
            ),
        )

    def _show(self, workload: Workload) -> None:
        for text, stream in ((workload.stdout, self.stdout), (workload.stderr, self.stderr)):
            if text:
                stream.write(sanitize(text, stream), style_func=str, ending="")
        printed = output_from_stdout(workload.stdout, truncated=workload.stdout_truncated)
        if json.dumps(workload.output) != json.dumps(printed):  # stdout did not show it
            output = json.dumps(workload.output, indent=2, ensure_ascii=False)
            self.stdout.write(sanitize(output, self.stdout))
        reason = f": {workload.error.splitlines()[0]}" if workload.error else ""
        self.stderr.write(
            sanitize(
                f"{workload.status} on {workload.isolation_used} in {workload.duration_ms} ms "
                f"({workload.rule}){reason}",
                self.stderr,
            ),
            style_func=str,
        )


def exit_code(workload: Workload) -> int:
    """Return the exit code that a shell would have reported for the program."""
    if not workload.ended:
        return NOT_RUN
    if workload.exit_reason in EXIT_CODES:
        return EXIT_CODES[ExitReason(workload.exit_reason)]
    if workload.signal:
        named = signal.Signals.__members__.get(workload.signal)
        return 128 + (int(workload.signal.removeprefix("SIG")) if named is None else named.value)
    if workload.exit_reason == ExitReason.EXITED:
        return workload.exit_code or 0
    return workload.exit_code or 1  # a failure on the host's side is never 0


def _read(file: str) -> tuple[str, str]:
    """Return the code of the file or stdin in the form of `WorkloadSpec`, and the file's suffix."""
    try:
        if file == "-":
            return sys.stdin.buffer.read().decode(), ""
        data, suffix = _bytes(file), Path(file).suffix.lower()
        return b64encode(data).decode() if suffix == ".wasm" else data.decode(), suffix
    except UnicodeDecodeError as error:
        raise CommandError(f"{short_repr(file)} is not UTF-8 text.", returncode=NOT_RUN) from error


def _bytes(file: str) -> bytes:
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise CommandError(
            f"Cannot read {short_repr(file)}: {error.strerror}.", returncode=NOT_RUN
        ) from error
