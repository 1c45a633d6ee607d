"""Indexes for what is asked about a time: how much ended, how, how long it took, what failed."""

from django.conf import settings
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("backends_app", "0002_admin"),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.AddIndex(
            model_name="workload",
            index=models.Index(
                fields=["finished_at", "isolation_used", "status", "exit_reason", "duration_ms"],
                name="workload_finished",
            ),
        ),
        migrations.AddIndex(
            model_name="workload",
            index=models.Index(fields=["status", "-finished_at", "owner"], name="workload_by_end"),
        ),
    ]
