from typing import Any

from django.db import migrations, models
from django.db.models.functions import Now


def take_over(apps: Any, schema_editor: Any) -> None:
    apps.get_model("turku_api", "Source").objects.filter(due_now=True).update(requested_at=Now())


def give_back(apps: Any, schema_editor: Any) -> None:
    sources = apps.get_model("turku_api", "Source").objects
    sources.filter(requested_at__isnull=False).update(due_now=True)


class Migration(migrations.Migration):
    dependencies = [
        ("turku_api", "0003_restore_orders"),
    ]

    operations = [
        migrations.AddField(
            model_name="source",
            name="requested_at",
            field=models.DateTimeField(
                blank=True,
                editable=False,
                help_text="Since when a backup is wanted whatever the schedule says; none: it isn't.",
                null=True,
            ),
        ),
        migrations.RunPython(take_over, give_back),
        migrations.RemoveField(
            model_name="source",
            name="due_now",
        ),
    ]
