"""Base classes of the admin pages: nothing is added, changed or deleted by hand."""

from typing import Any

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest
from django.template.response import TemplateResponse
from django.utils.text import capfirst


class ReadOnlyAdmin(admin.ModelAdmin):  # type: ignore[type-arg]  # no generic while it runs
    """Read-only rows. Every action has its own permission."""

    class Media:
        css = {"all": ["backends_app/admin.css"]}

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any | None = None) -> bool:
        return False

    def has_model_perm(self, verb: str, request: HttpRequest) -> bool:
        """Return whether the user has the permission `<verb>_<model>`."""
        return request.user.has_perm(f"{self.opts.app_label}.{verb}_{self.opts.model_name}")


class PageAdmin(ReadOnlyAdmin):
    """A single page in place of the list of rows, for a model without a table."""

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> TemplateResponse:
        if not self.has_view_permission(request):
            raise PermissionDenied
        request.current_app = self.admin_site.name
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "title": capfirst(self.opts.verbose_name_plural),
            "media": self.media,
            **self.page_context(request),
            **(extra_context or {}),
        }
        name = f"admin/{self.opts.app_label}/{self.opts.model_name}/change_list.html"
        return TemplateResponse(request, name, context)

    def page_context(self, request: HttpRequest) -> dict[str, Any]:
        """Return the page's own template context."""
        raise NotImplementedError
