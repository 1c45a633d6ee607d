"""`manage.py run_workload`: run a program behind its isolation, as if it were run here."""

import json
import signal
import sys
from argparse import ArgumentParser
from base64 import b64encode
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import DatabaseError

from ... import strict_json
from ...api.serializers import WorkloadSerializer, parse_isolation
from ...backends import progress
from ...conf import limits
from ...exceptions import VulcanError, short_repr
from ...executors import get_executor
from ...health import PROBE_TIMEOUT_S
from ...lifecycle import Submission
from ...models import Workload
from ...routing import RUNTIMES
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
NOT_RUN = 125  # as `docker run` ends when it is not the program that failed
EXIT_CODES = {ExitReason.TIMEOUT: 124, ExitReason.MEMORY_LIMIT: 137, ExitReason.KILLED: 137}


class Command(BaseCommand):
    help = (
        "Run a program and end with its exit code (124: out of time, 137: out of memory, "
        "128 + n: ended by signal n, 125: it could not be run). What it prints goes to stdout and "
        "stderr; a returned output is printed to stdout as JSON, unless just that was printed."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "file",
            nargs="?",
            help="The program's file, an archive (.tar.gz, .tgz), or - for stdin.",
        )
        parser.add_argument(
            "command",
            nargs="*",
            help="The command to run in an image or an archive, or a module's arguments, after --.",
        )
        parser.add_argument("--code", help="The program itself, instead of a file.")
        parser.add_argument("--image", help="An OCI image instead of a program.")
        parser.add_argument(
            "--runtime", help=f"One of {', '.join(RUNTIMES)}; default: by the file's name, or node."
        )
        parser.add_argument(
            "--isolation",
            default=AUTO,
            help="auto (default), a backend name, or several, by comma.",
        )
        parser.add_argument("--input", default="null", help="The program's input, as JSON.")
        parser.add_argument("--timeout", type=float, metavar="SECONDS")
        parser.add_argument("--memory", type=int, metavar="MB")
        parser.add_argument("--cpus", type=float)
        parser.add_argument(
            "--async",
            action="store_true",
            dest="submit",
            help="Submit it, print its id and end; a server, or its workers, run it.",
        )
        parser.add_argument(
            "--rerun-if-lost",
            action="store_true",
            help="Run it a second time when nobody knows what became of the first.",
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
                with progress.shown(progress_bar), spinner("Running"):
                    workload = executor.run(submission)
        except VulcanError as error:
            raise CommandError(str(error), returncode=NOT_RUN) from error
        except DatabaseError as error:
            reason = f"It cannot be recorded: {error}. Is the database there (manage.py migrate)?"
            raise CommandError(reason, returncode=NOT_RUN) from error
        if options["format"] == "json":
            print_json(self, WorkloadSerializer(workload).data)
        elif options["submit"]:
            self.stdout.write(workload.pk)
            if not executor.live_nodes():
                self.stderr.write("No server or worker is there to run it yet.", style_func=str)
        else:
            self._show(workload)
        if not options["submit"] and (code := exit_code(workload)):
            sys.exit(code)

    def _spec(self, options: dict[str, Any]) -> WorkloadSpec:
        file, command = options["file"], options["command"]
        if options["image"] is not None and file is not None:
            file, command = None, [file, *command]
        given = (file, options["code"], options["image"])
        if sum(one is not None for one in given) != 1:
            raise CommandError(
                "Give exactly one of a file, --code and --image.", returncode=NOT_RUN
            )
        try:
            program_input = strict_json.loads(options["input"])
        except strict_json.InvalidJSON as refused:
            raise CommandError(f"--input is no JSON: {refused}.", returncode=NOT_RUN) from refused
        code, archive, suffix = options["code"], None, ""
        if file is not None and file.lower().endswith(ARCHIVE_SUFFIXES):
            archive = _bytes(file)
            if options["runtime"] is None:
                raise CommandError("An archive takes a --runtime.", returncode=NOT_RUN)
        elif file is not None:
            code, suffix = _read(file)
        guessed = None if options["image"] else RUNTIME_OF_SUFFIX.get(suffix, "node")
        bound = limits()
        return WorkloadSpec(
            runtime=options["runtime"] or guessed,
            isolation=parse_isolation(options["isolation"]),
            code=code,
            archive=archive,
            image=options["image"],
            command=tuple(command),
            input=program_input,
            resources=bound.resources(
                cpus=options["cpus"], mem_mb=options["memory"], timeout_s=options["timeout"]
            ),
        )

    def _show(self, workload: Workload) -> None:
        for text, stream in ((workload.stdout, self.stdout), (workload.stderr, self.stderr)):
            if text:
                stream.write(sanitize(text, stream), style_func=str, ending="")
        printed = output_from_stdout(workload.stdout, truncated=workload.stdout_truncated)
        if json.dumps(workload.output) != json.dumps(printed):  # it is not on the terminal yet
            output = json.dumps(workload.output, indent=2, ensure_ascii=False)
            self.stdout.write(sanitize(output, self.stdout))
        why = f": {workload.error.splitlines()[0]}" if workload.error else ""
        self.stderr.write(
            sanitize(
                f"{workload.status} on {workload.isolation_used} in {workload.duration_ms} ms "
                f"({workload.rule}){why}",
                self.stderr,
            ),
            style_func=str,
        )


def exit_code(workload: Workload) -> int:
    """What a shell would have said of the program."""
    if not workload.ended:
        return NOT_RUN
    if workload.exit_reason in EXIT_CODES:
        return EXIT_CODES[ExitReason(workload.exit_reason)]
    if workload.signal:
        known = signal.Signals.__members__.get(workload.signal)
        return 128 + (int(workload.signal.removeprefix("SIG")) if known is None else known.value)
    if workload.exit_reason == ExitReason.EXITED:
        return workload.exit_code or 0
    return workload.exit_code or 1  # it ended well in its own eyes, and not in the host's


def _read(file: str) -> tuple[str, str]:
    """The code in the file or on stdin as a `WorkloadSpec` has it, and the file's suffix."""
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
            f"{short_repr(file)} cannot be read: {error.strerror}.", returncode=NOT_RUN
        ) from error
