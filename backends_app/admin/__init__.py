"""Django admin of backends, routes, nodes and workloads, with the actions of an operator."""

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
