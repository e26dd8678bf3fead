import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("turku_api", "0005_high_water_mark"),
    ]

    operations = [
        migrations.CreateModel(
            name="Hold",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                (
                    "since",
                    models.DateTimeField(
                        help_text="When the snapshot was taken that changed so much."
                    ),
                ),
                ("snapshot", models.CharField(blank=True, max_length=255)),
                ("reason", models.CharField(blank=True, max_length=1024)),
                (
                    "share",
                    models.FloatField(
                        blank=True,
                        help_text="Which share of the files changed, from 0 to 1.",
                        null=True,
                    ),
                ),
                ("reported_at", models.DateTimeField()),
                (
                    "source",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="holds",
                        to="turku_api.source",
                    ),
                ),
                (
                    "storage",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="holds",
                        to="turku_api.storageunit",
                    ),
                ),
            ],
            options={
                "ordering": ["-since"],
            },
        ),
        migrations.AddConstraint(
            model_name="hold",
            constraint=models.UniqueConstraint(
                fields=("source", "storage"), name="turku_hold_once"
            ),
        ),
    ]
