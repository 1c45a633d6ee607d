"""`manage.py benchmark`: run the same workload on every backend of this host and compare times."""

import math
from argparse import ArgumentParser
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import DatabaseError
from rich.console import RenderableType
from rich.table import Column, Table
from rich.text import Text

from ...benchmarks import kept
from ...benchmarks.compare import THRESHOLD, Change, Comparison, compare
from ...benchmarks.measure import Bench, Target, probe, targets
from ...benchmarks.programs import PROGRAMS
from ...benchmarks.results import MODES, Results, Skipped
from ...exceptions import comma_join
from ...models import Benchmark
from ...registry import registry
from ...routing import RUNTIME_ALIASES
from ...utils.text import short_repr
from ...web.benchmarks.words import figure, percent_change, ratio
from ..output import add_format, plain, print_json, print_rich, progress_bar

ROUNDS, MAX_ROUNDS = 10, 1000
INTERRUPTED = 130  # 128 + SIGINT, as in a shell
HEADS = {"p50_ms": "p50 ms", "p95_ms": "p95 ms", "per_s": "per s", "failures": "failed"}


class Command(BaseCommand):
    help = (
        "Run the same small workload on every healthy backend of this host: cold (the first of a "
        "fresh backend), warm (one after the other) and parallel (one per slot). Other load on "
        "the host changes the figures, and is slowed down meanwhile."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        add_format(parser)
        parser.add_argument(
            "--rounds",
            type=int,
            default=ROUNDS,
            metavar="N",
            help=f"Rounds per mode (default: {ROUNDS}).",
        )
        parser.add_argument(
            "--backend",
            action="append",
            metavar="NAME",
            help="Measure only this backend; fail if it cannot be measured. May be repeated.",
        )
        parser.add_argument(
            "--runtime",
            choices=[*(one.runtime for one in PROGRAMS), *RUNTIME_ALIASES],
            metavar="RUNTIME",
            help="Runtime to measure. Default: for each backend the first that it supports of "
            f"{comma_join(one.runtime for one in PROGRAMS)}.",
        )
        parser.add_argument("--image", help="Image with cat, for backends that run images.")
        parser.add_argument("--keep", metavar="NAME", help="Save the results under this name.")
        parser.add_argument(
            "--compare",
            metavar="NAME",
            help="Compare with the newest benchmark of this name; "
            f"{kept.LATEST}: with the newest of this host.",
        )
        parser.add_argument(
            "--fail-if-slower",
            type=float,
            metavar="PERCENT",
            help="Exit with 1 if a figure is worse by more than PERCENT, or more runs fail. "
            f"Without this option, changes of more than {100 * THRESHOLD:g} %% are marked.",
        )
        parser.add_argument("--list", action="store_true", help="List saved benchmarks and exit.")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            if options["list"]:
                self._list(options)
            else:
                self._measure(options)
        except DatabaseError as error:
            reason = f"Cannot access saved benchmarks: {error}."
            raise CommandError(f"{reason} Was manage.py migrate run?") from error
        except KeyboardInterrupt:
            raise CommandError("Interrupted; nothing was saved.", returncode=INTERRUPTED) from None

    def _list(self, options: dict[str, Any]) -> None:
        found = list(Benchmark.objects.all())
        if options["format"] == "json":
            print_json(self, [_as_json(one) for one in found])
        elif found:
            print_rich(self, options, _saved_table(found))
        else:
            self.stdout.write("No saved benchmarks yet; --keep NAME saves one.")

    def _measure(self, options: dict[str, Any]) -> None:
        threshold = _threshold(options)
        if not 1 <= options["rounds"] <= MAX_ROUNDS:
            raise CommandError(f"--rounds must be 1 to {MAX_ROUNDS}.")
        if options["keep"] is not None and (problem := kept.name_problem(options["keep"])):
            raise CommandError(f"Cannot save as {short_repr(options['keep'])}: {problem}.")
        earlier = self._earlier(options["compare"])
        if options["keep"] is not None:
            Benchmark.objects.exists()  # fail now if the database is missing, not after minutes
        found, left_out = self._targets(options)
        bench = Bench(registry, found, options["rounds"], left_out=left_out)
        names = comma_join(one.name for one in found)
        with progress_bar(f"Running {bench.total} workloads on {names}") as advance:
            results = bench.run(advance)
        versions = kept.versions(registry, results)
        comparison = None
        if earlier is not None:
            comparison = compare(Results.from_json(earlier.results), results, threshold)
        if options["format"] == "json":
            compared = earlier and comparison and _comparison_json(earlier, comparison)
            print_json(
                self,
                {
                    "versions": versions,
                    "busy": results.host_busy,
                    "results": results.as_json(),
                    "comparison": compared,
                },
            )
        else:
            print_rich(self, options, *_result_parts(results))
            if earlier is not None and comparison is not None:
                print_rich(self, options, *_comparison_parts(earlier, comparison))
        if not results.succeeded:
            raise CommandError("Every run failed; nothing was saved.")
        if options["keep"] is not None:
            kept.save(options["keep"], results, versions)
            if options["format"] == "table":
                self.stdout.write(f"Saved as {options['keep']}; see /benchmarks.")
        if options["fail_if_slower"] is not None and comparison and comparison.worse:
            worse = [
                f"{one.backend} {one.mode} {HEADS[one.figure]}" for one in comparison.regressions
            ]
            worse += [f"{name} no longer works" for name in comparison.lost]
            raise CommandError(f"Worse by more than {100 * threshold:g} %: {comma_join(worse)}.")

    def _earlier(self, name: str | None) -> Benchmark | None:
        """Return the benchmark to compare with; None with a note if `latest` finds none."""
        if name is None:
            return None
        found = kept.find(name)
        if found is None and name != kept.LATEST:
            raise CommandError(f"No saved benchmark is named {short_repr(name)}; see --list.")
        if found is None:
            self.stderr.write("There is no earlier benchmark to compare with.", style_func=str)
        return found

    def _targets(self, options: dict[str, Any]) -> tuple[list[Target], list[Skipped]]:
        named: list[str] = options["backend"] or []
        for name in named:
            if name not in registry:
                registered = comma_join(registry)
                raise CommandError(
                    f"Backend {short_repr(name)} is not registered. Registered: {registered}."
                )
        probe(registry, named or registry)
        runtime = RUNTIME_ALIASES.get(options["runtime"], options["runtime"])
        found, left_out = targets(registry, runtime=runtime, image=options["image"])
        if named:
            found = [one for one in found if one.name in named]
            left_out = [one for one in left_out if one.name in named]
        reasons = "; ".join(f"{one.name}: {one.reason}" for one in left_out)
        if named and left_out:
            raise CommandError(f"Cannot be measured: {reasons}.")
        if not found:
            raise CommandError(f"No backend can be measured. {reasons}")
        return found, left_out


def _threshold(options: dict[str, Any]) -> float:
    percent = options["fail_if_slower"]
    if percent is None:
        return THRESHOLD
    if not math.isfinite(percent) or percent < 0:
        raise CommandError("--fail-if-slower must be a number of at least 0.")
    if options["compare"] is None:
        raise CommandError("--fail-if-slower needs --compare.")
    return float(percent) / 100


def _result_parts(results: Results) -> Iterable[RenderableType]:
    table = Table(
        *("Backend", "Ran", "Mode"),
        *(
            Column(head, justify="right")
            for head in ("p50 ms", "p95 ms", "× fastest", "own p50", "own p95", "per s", "at once")
        ),
        Column("failed", justify="right"),
        title=f"{results.rounds} rounds: {results.task}",
        title_justify="left",
    )
    notes = []
    for one in results.measured:
        for mode, figures in one.modes.items():
            table.add_row(
                one.name,
                plain(one.image or one.runtime),
                mode,
                figure(figures.p50_ms),
                figure(figures.p95_ms),
                ratio(figures.ratio),
                figure(figures.own_p50_ms),
                figure(figures.own_p95_ms),
                figure(figures.per_s),
                str(figures.at_once),
                Text(
                    f"{figures.failures} of {figures.runs}", style="red" if figures.failures else ""
                ),
                end_section=figures is list(one.modes.values())[-1],
            )
            if figures.failure:
                notes.append(f"{one.name}, {mode}, first failure: {figures.failure}")
            if figures.waited:
                notes.append(
                    f"{one.name}, {mode}: {figures.waited} of {figures.runs} runs waited for slots "
                    "in use by others."
                )
        if "cold" not in one.modes:
            notes.append(f"{one.name} has no cold figures: it is not built from the settings.")
    notes += [f"{one.name} was not measured: {one.reason}" for one in results.left_out]
    load = (
        f"Host load: {results.load_before} before, {results.load_after} after, "
        f"on {results.processors} processors."
    )
    yield table
    yield from (plain(note) for note in notes)
    if results.host_busy:
        yield Text(f"The host was busy, so the figures are less reliable. {load}", style="yellow")
    else:
        yield Text(load)


def _comparison_parts(earlier: Benchmark, found: Comparison) -> Iterable[RenderableType]:
    table = Table(
        *("Backend", "Mode"),
        *(Column(head, justify="right") for head in HEADS.values()),
        title=plain(f"Compared with {earlier.name} of {_format_time(earlier)}"),
        title_justify="left",
    )
    rows: dict[tuple[str, str], list[Change]] = {}
    for change in found.changes:
        rows.setdefault((change.backend, change.mode), []).append(change)
    for (backend, mode), changes in rows.items():
        table.add_row(backend, mode, *(_cell(change) for change in changes))
    yield table
    yield from (plain(note) for note in found.notes)
    yield from (plain(f"{name} no longer works", style="red") for name in found.lost)


def _cell(change: Change) -> Text:
    parts = [f"{figure(change.before)} → {figure(change.now)}", percent_change(change.share)]
    if change.worse:
        parts.append("worse")
    return Text(" ".join(filter(None, parts)), style="red" if change.worse else "")


def _saved_table(found: Iterable[Benchmark]) -> RenderableType:
    table = Table(
        *("Name", "Created", "Node"), *(Column(f"{mode} p50 ms", overflow="fold") for mode in MODES)
    )
    for one in found:
        results = Results.from_json(one.results)
        medians = [
            ", ".join(
                f"{each.name} {figure(each.modes[mode].p50_ms)}"
                for each in results.measured
                if mode in each.modes
            )
            for mode in MODES
        ]
        table.add_row(
            plain(one.name),
            _format_time(one),
            plain(one.node),
            *medians,
        )
    return table


def _as_json(benchmark: Benchmark) -> dict[str, Any]:
    return {
        "name": benchmark.name,
        "node": benchmark.node,
        "created_at": benchmark.created_at.isoformat(),
        "versions": benchmark.versions,
        "results": benchmark.results,
    }


def _comparison_json(earlier: Benchmark, found: Comparison) -> dict[str, Any]:
    return {
        "name": earlier.name,
        "node": earlier.node,
        "created_at": earlier.created_at.isoformat(),
        "worse": found.worse,
        **asdict(found),
    }


def _format_time(benchmark: Benchmark) -> str:
    return f"{benchmark.created_at:%Y-%m-%d %H:%M} UTC"
