"""Admin page of the routing table, with a form that explains routing decisions."""

from typing import Any

from django import forms
from django.http import HttpRequest

from ..executors import start_executor
from ..registry import registry
from ..routing import MAX_ISOLATIONS, MAX_NAME_CHARS, RUNTIME_ALIASES, RUNTIMES, parse_isolation
from ..workloads import AUTO, SOURCE_FORMATS
from .base import PageAdmin


class ResolutionForm(forms.Form):
    """The routing fields of a request; any value is accepted, and the page suggests some."""

    isolation = forms.CharField(
        initial=AUTO,
        max_length=MAX_ISOLATIONS * (MAX_NAME_CHARS + 2),
        help_text="auto, a backend, or several separated by commas in order of preference",
        widget=forms.TextInput(attrs={"list": "isolations"}),
    )
    runtime = forms.CharField(
        required=False,
        max_length=MAX_NAME_CHARS,
        help_text="not needed for an image",
        widget=forms.TextInput(attrs={"list": "runtimes"}),
    )
    source_format = forms.ChoiceField(choices=[(name, name) for name in SOURCE_FORMATS])


class RouteAdmin(PageAdmin):
    """The routing table of this process's registry."""

    def page_context(self, request: HttpRequest) -> dict[str, Any]:
        start_executor()
        snapshot = registry.snapshot
        form = ResolutionForm(request.GET or None)
        resolution = None
        if form.is_valid():
            fields = form.cleaned_data
            resolution = snapshot.decide(
                parse_isolation(fields["isolation"]),
                fields["runtime"] or None,
                fields["source_format"],
            )
        return {
            "rows": snapshot.list_routes(),
            "form": form,
            "resolution": resolution,
            "isolations": [AUTO, *snapshot.entries],
            "runtimes": [*RUNTIMES, *RUNTIME_ALIASES],
        }
