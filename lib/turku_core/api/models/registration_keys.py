"""Registration keys: what a newcomer shows once."""

from __future__ import annotations

from datetime import datetime

from django.core.exceptions import ValidationError
from django.db import models, transaction

from turku_core import credentials, fields


class KeyKind(models.TextChoices):
    """What a registration key lets in."""

    MACHINE = "machine"
    STORAGE = "storage"


class RegistrationKey(models.Model):
    """A secret that lets machines, or storage units, register; only its hash is kept."""

    name = models.CharField(max_length=128, unique=True)
    kind = models.CharField(max_length=16, choices=KeyKind.choices, default=KeyKind.MACHINE)
    secret_hash = models.CharField(max_length=64, editable=False, db_index=True)
    active = models.BooleanField(
        default=True,
        help_text="A key that isn't active lets nothing new in. What registered with it before "
        "goes on working, with a secret of its own.",
    )
    from_relation = models.BooleanField(
        default=False,
        editable=False,
        help_text="A charm keeps this key for a relation: a machine registers with it only when a "
        "unit of the relation has announced it.",
    )
    comment = models.CharField(max_length=1024, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)
    disabled_at = models.DateTimeField(null=True, blank=True, editable=False)

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name

    def clean(self) -> None:
        """Hold the name to what the protocol takes, or nobody could show the key."""
        try:
            fields.name(self.name, "name")
        except fields.FieldError as error:
            raise ValidationError({"name": f"It {error.expected}."}) from error

    @classmethod
    def create_with_secret(
        cls, name: str, kind: str = KeyKind.MACHINE, comment: str = ""
    ) -> tuple[RegistrationKey, str]:
        """Make a key; its secret is returned this once and can't be read again."""
        secret = credentials.make_secret()
        key = cls(
            name=name, kind=kind, comment=comment, secret_hash=credentials.hash_secret(secret)
        )
        key.full_clean()
        key.save()
        return key, secret

    def rotate(self) -> str:
        """Give the key a new secret and return it; the old one lets nobody in from now on."""
        secret = credentials.make_secret()
        self.secret_hash = credentials.hash_secret(secret)
        self.save(update_fields=["secret_hash"])
        return secret

    def disable(self, *, with_machines: bool, now: datetime) -> int:
        """Stop new registrations with this key.

        Args:
            with_machines: Also deactivate what has registered with it: those machines and
                storage units are answered 403 from now on. Without it they go on working.
            now: The time that is noted.

        Returns:
            How many machines and storage units were deactivated.
        """
        with transaction.atomic():
            self.active = False
            self.disabled_at = now
            self.save(update_fields=["active", "disabled_at"])
            if not with_machines:
                return 0
            machines = self.machines.filter(active=True).update(active=False, next_due_at=None)
            return machines + self.storage_units.filter(active=True).update(active=False)

    def enable(self) -> None:
        """Let newcomers in again; machines that were deactivated stay so."""
        self.active = True
        self.disabled_at = None
        self.save(update_fields=["active", "disabled_at"])
