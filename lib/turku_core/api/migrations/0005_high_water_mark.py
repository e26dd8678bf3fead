from typing import Any

import django.core.validators
from django.db import migrations, models

DEFAULT = 80


def leave_to_the_units(apps: Any, schema_editor: Any) -> None:
    units = apps.get_model("turku_api", "StorageUnit").objects
    units.filter(high_water_mark=DEFAULT).update(high_water_mark=None)


def give_back(apps: Any, schema_editor: Any) -> None:
    units = apps.get_model("turku_api", "StorageUnit").objects
    units.filter(high_water_mark=None).update(high_water_mark=DEFAULT)


class Migration(migrations.Migration):
    dependencies = [
        ("turku_api", "0004_requested_at"),
    ]

    operations = [
        migrations.AddField(
            model_name="storageunit",
            name="told_high_water_mark",
            field=models.PositiveSmallIntegerField(editable=False, null=True),
        ),
        migrations.AlterField(
            model_name="storageunit",
            name="high_water_mark",
            field=models.PositiveSmallIntegerField(
                blank=True,
                help_text="Percent of the space used, from which on no new source is placed here. "
                "Empty: as the unit itself says.",
                null=True,
                validators=[
                    django.core.validators.MinValueValidator(1),
                    django.core.validators.MaxValueValidator(100),
                ],
            ),
        ),
        migrations.RunPython(leave_to_the_units, give_back),
    ]
