"""The request to run a workload: its format only, not its meaning."""

from typing import Any

from ...conf import limits
from ...workloads import AUTO, WorkloadSpec
from .base import StrictSerializer
from .fields import (
    MAX_COMMAND_WORDS,
    MAX_WORD_CHARS,
    AnyJSONField,
    Base64Field,
    CommandField,
    FlagField,
    IsolationField,
    NumberField,
    RuntimeField,
    TextField,
    WholeNumberField,
)

MAX_IMAGE_CHARS = 512


class ResourcesSerializer(StrictSerializer):
    """The resources that the workload may use; missing values are the operator's defaults."""

    cpus = NumberField(required=False, label="Processors", help_text="Processors, e.g. 0.5 or 2.")
    mem_mb = WholeNumberField(required=False, label="Memory (MB)", help_text="Memory in MB.")
    timeout_s = NumberField(
        required=False, label="Time limit (seconds)", help_text="Time limit in seconds."
    )


class WorkloadRequestSerializer(StrictSerializer):
    """One workload to run. Give exactly one of code, code_archive and image."""

    runtime = RuntimeField(
        required=False,
        allow_blank=True,
        trim_whitespace=False,
        initial="node",
        style={"base_template": "select.html"},
        help_text="node (or javascript, typescript), wasm, python, go, oci; optional for images.",
    )
    isolation = IsolationField(
        required=False,
        default=AUTO,
        initial=AUTO,
        help_text="auto, a backend name, or a list of names, most preferred first.",
    )
    code = TextField(
        required=False,
        trim_whitespace=False,
        initial="export default (input) => input",
        style={"base_template": "textarea.html", "rows": 10},
        help_text="The program's source code; for the runtime wasm, a module in base64.",
    )
    code_archive = Base64Field(
        required=False,
        label="Archive (base64)",
        help_text="A tar.gz with the program, in base64.",
        style={"rows": 3},
    )
    image = TextField(
        required=False, max_length=MAX_IMAGE_CHARS, help_text="An OCI image reference."
    )
    command = CommandField(
        child=TextField(max_length=MAX_WORD_CHARS, trim_whitespace=False, allow_blank=True),
        required=False,
        max_length=MAX_COMMAND_WORDS,
        style={"base_template": "input.html"},
        help_text="The command line as a list of words. It replaces an image's CMD, after its "
        "ENTRYPOINT; a WebAssembly module gets it as arguments, after its own name.",
    )
    input = AnyJSONField(
        required=False,
        default=None,
        allow_null=True,
        style={"base_template": "textarea.html", "rows": 3},
        help_text="The program's input: any JSON.",
    )
    resources = ResourcesSerializer(required=False)
    rerun_if_lost = FlagField(
        required=False,
        label="Rerun if lost",
        default=False,
        help_text="Run it a second time when the outcome of the first run is unknown.",
    )


def workload_spec(data: dict[str, Any]) -> WorkloadSpec:
    """Convert a validated request to a `WorkloadSpec`; raise `InvalidRequest`."""
    bounds = limits()
    return WorkloadSpec(
        runtime=data.get("runtime"),
        isolation=data["isolation"],
        code=data.get("code"),
        archive=data.get("code_archive"),
        image=data.get("image"),
        command=tuple(data.get("command", ())),
        input=data["input"],
        resources=bounds.resources(**data.get("resources", {})),
    )
