"""URL of the benchmark page."""

from django.urls import path

from .views import BenchmarksView

urlpatterns = [
    path("benchmarks", BenchmarksView.as_view(), name="benchmarks"),
    path("benchmarks/", BenchmarksView.as_view()),
]
