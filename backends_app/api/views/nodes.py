"""The hosts that run workloads."""

from rest_framework.permissions import IsAuthenticated
from rest_framework.request import Request
from rest_framework.response import Response

from ..schema import errors, extend_schema
from ..serializers.nodes import NodeSerializer
from .base import Link, RegistryView


class NodesView(RegistryView):
    """The hosts that run workloads, with their backends, health and running workloads."""

    name = "Nodes"
    permission_classes = [IsAuthenticated]

    @extend_schema(
        operation_id="nodes_list",
        responses={200: NodeSerializer(many=True), **errors(401, 403, 406)},
    )
    def get(self, request: Request) -> Response:
        return Response(NodeSerializer(self.executor.live_nodes(), many=True).data)

    def links(self) -> list[Link]:
        return [self.link("backends", "backends")]
