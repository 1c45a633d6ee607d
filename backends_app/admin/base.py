"""What all pages have in common: nothing is added, changed or deleted by hand."""

from typing import Any

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest
from django.template.response import TemplateResponse
from django.utils.text import capfirst


class ReadOnlyAdmin(admin.ModelAdmin):  # type: ignore[type-arg]  # no generic while it runs
    """Rows to look at. Whatever else can be done has a permission of its own."""

    class Media:
        css = {"all": ["backends_app/admin.css"]}

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any | None = None) -> bool:
        return False

    def may(self, verb: str, request: HttpRequest) -> bool:
        """Has the user the permission of the model with this verb?"""
        return request.user.has_perm(f"{self.opts.app_label}.{verb}_{self.opts.model_name}")


class PageAdmin(ReadOnlyAdmin):
    """One page about all there is, where a model without a table has no list of rows."""

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
            **self.page(request),
            **(extra_context or {}),
        }
        name = f"admin/{self.opts.app_label}/{self.opts.model_name}/change_list.html"
        return TemplateResponse(request, name, context)

    def page(self, request: HttpRequest) -> dict[str, Any]:
        """What the page shows."""
        raise NotImplementedError
