"""URLs of the site: dashboard, benchmarks, API, admin and log-in."""

from django.contrib import admin
from django.urls import include, path

admin.site.site_header = admin.site.site_title = "Vulcan"
admin.site.index_title = "Operate Vulcan"

urlpatterns = [
    path("", include("backends_app.web.dashboard.urls")),
    path("", include("backends_app.web.benchmarks.urls")),
    path("v1/", include("backends_app.api.urls")),
    path("admin/", admin.site.urls),
    path("api-auth/", include("rest_framework.urls")),
]

handler400 = "backends_app.api.errors.bad_request"
handler403 = "backends_app.api.errors.permission_denied"
handler404 = "backends_app.api.errors.not_found"
handler500 = "backends_app.api.errors.server_error"
