"""The admin: what there is, what runs, and what an operator may do about it; stock Django."""

from django.contrib import admin

from ..models import Backend, NodeBackend, Route, Workload
from .backends import BackendAdmin
from .nodes import NodeAdmin
from .routes import RouteAdmin
from .workloads import WorkloadAdmin

admin.site.register(Backend, BackendAdmin)
admin.site.register(NodeBackend, NodeAdmin)
admin.site.register(Route, RouteAdmin)
admin.site.register(Workload, WorkloadAdmin)
