from typing import Any

from django.db import migrations, models
from django.db.models import Max


def take_from_the_snapshots(apps: Any, schema_editor: Any) -> None:
    snapshots = apps.get_model("turku_api", "Snapshot").objects
    sources = apps.get_model("turku_api", "Source").objects
    proven = snapshots.filter(source__isnull=False, proven_at__isnull=False)
    newest = proven.order_by().values_list("source").annotate(Max("proven_at"))
    for source, proven_at in newest:
        sources.filter(pk=source).update(last_proven_at=proven_at)


class Migration(migrations.Migration):
    dependencies = [
        ("turku_api", "0006_holds"),
    ]

    operations = [
        migrations.AddField(
            model_name="storageunit",
            name="told_verify_interval_days",
            field=models.FloatField(editable=False, null=True),
        ),
        migrations.AddField(
            model_name="source",
            name="last_proven_at",
            field=models.DateTimeField(
                blank=True,
                editable=False,
                help_text="When files of a snapshot of it were last restored and compared, and "
                "were good.",
                null=True,
                verbose_name="last proven",
            ),
        ),
        migrations.RunPython(take_from_the_snapshots, migrations.RunPython.noop),
    ]
