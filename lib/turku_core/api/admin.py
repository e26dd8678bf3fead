"""The administration site: machines, sources, storage, backups, what is overdue and why.

What machines and storage units say of themselves, and the records of backups, can be looked at
and not changed; what an operator does is an action, the same as the command of that name. Only
filter sets can be deleted: deleting anything else could make history vanish.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.views.main import ChangeList
from django.core.exceptions import ValidationError
from django.db.models import Count, Model, Q, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.html import format_html
from django.utils.http import urlencode

from turku_core.api import clock, operations, restore_orders
from turku_core.api.health import used_percent
from turku_core.api.models import (
    Backup,
    FilterSet,
    Hold,
    Machine,
    RegistrationKey,
    RestoreGrant,
    RestoreOrder,
    Snapshot,
    Source,
    StorageUnit,
)
from turku_core.api.overdue import (
    Behind,
    examine,
    find_behind,
    first_line,
    wanted_sources,
    with_last_failure,
)
from turku_core.api.proofs import Unproven, find_unproven, worst_by_source
from turku_core.api.states import machine_state, source_state, storage_state
from turku_core.commandline import human_duration, human_size
from turku_core.errors import TurkuError

if TYPE_CHECKING:
    # These take a parameter in the type stubs only.
    AnyAdmin = admin.ModelAdmin[Any]
    AnyInline = admin.TabularInline[Any, Any]
    AnyForm = forms.ModelForm[Any]
else:
    AnyAdmin, AnyInline, AnyForm = admin.ModelAdmin, admin.TabularInline, forms.ModelForm

MIB = 1024 * 1024

admin.site.site_header = "Turku"
admin.site.site_title = "Turku"
admin.site.index_title = "Backups of the fleet"
admin.site.index_template = "turku_api/index.html"
admin.site.disable_action("delete_selected")


class ReadOnlyAdmin(AnyAdmin):
    """What can be looked at, and neither added, changed nor deleted."""

    list_per_page = 100
    show_full_result_count = False
    editable_fields: tuple[str, ...] = ()

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Refuse: rows come from machines and storage units."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        """Refuse: history must not vanish."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        """Let the fields that a class names be edited; without any, a page has no Save button."""
        return bool(self.editable_fields) and super().has_change_permission(request, obj)

    def has_operate_permission(self, request: HttpRequest) -> bool:
        """Let those use the actions who were given the permission to change."""
        return super().has_change_permission(request)

    def get_readonly_fields(
        self, request: HttpRequest, obj: Model | None = None
    ) -> list[str] | tuple[Any, ...]:
        """Return every field but those that the class lets an operator edit."""
        return [name for name in self._shown_fields() if name not in self.editable_fields]

    def get_fields(self, request: HttpRequest, obj: Model | None = None) -> list[Any]:
        """Return every field but the hash of a secret, in the order of the model."""
        return self._shown_fields()

    def _shown_fields(self) -> list[str]:
        return [
            field.name
            for field in self.opts.concrete_fields
            if not field.primary_key and field.name != "secret_hash"
        ]

    def do_for_each(
        self, request: HttpRequest, chosen: Iterable[Any], done: str, operation: Any
    ) -> None:
        """Run an operation on what was chosen; say what was done and what could not be."""
        count = 0
        for each in chosen:
            try:
                operation(each)
            except (TurkuError, ValidationError) as error:
                text = " ".join(error.messages) if isinstance(error, ValidationError) else error
                self.message_user(request, f"Not {done}: {each}: {text}", messages.ERROR)
            else:
                count += 1
                self.log_change(request, each, done)
        if count:
            self.message_user(request, f"{count} {done}.", messages.SUCCESS)


class StateFilter(admin.SimpleListFilter):
    """Machines by the one word for their state."""

    title = "state"
    parameter_name = "state"
    _CONDITIONS = {
        "active": Q(active=True, published=True, paused=False),
        "paused": Q(active=True, published=True, paused=True),
        "unpublished": Q(active=True, published=False),
        "disabled": Q(active=False, retired_at=None),
        "retired": Q(retired_at__isnull=False),
    }

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        """Return the words."""
        return [(word, word) for word in self._CONDITIONS]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """Select the machines of the chosen word."""
        condition = self._CONDITIONS.get(self.value() or "")
        return queryset if condition is None else queryset.filter(condition)


class SourcesOfMachine(AnyInline):
    """A machine's sources on its page."""

    model = Source
    fields = readonly_fields = (
        "name",
        "path",
        "frequency",
        "retention",
        "storage",
        "last_success_at",
        "next_due_at",
        "last_proven_at",
        "paused",
        "published",
    )
    show_change_link = True
    can_delete = False
    extra = 0

    def get_queryset(self, request: HttpRequest) -> QuerySet[Source]:
        """Read the storage units with the sources."""
        return super().get_queryset(request).select_related("storage", "machine")

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Refuse: sources come from the machine."""
        return False


@admin.register(Machine)
class MachineAdmin(ReadOnlyAdmin):
    """Machines."""

    list_display = (
        "unit_name",
        "environment_name",
        "service_name",
        "state",
        "source_count",
        "last_checkin_at",
        "recent_backups",
    )
    list_filter = (StateFilter, "environment_name")
    search_fields = (
        "unit_name",
        "uuid",
        "environment_name",
        "service_name",
        "comment",
        "ssh_key_fingerprint",
    )
    inlines = (SourcesOfMachine,)
    actions = ("pause", "resume", "backup_now", "retire", "reinstate", "allow_restore")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Machine]:
        """Count the sources in the same query."""
        return _with_source_count(super().get_queryset(request))

    @admin.display(description="state")
    def state(self, machine: Machine) -> str:
        """Return the one word."""
        return machine_state(machine)

    @admin.display(description="sources", ordering="sources_published")
    def source_count(self, machine: Any) -> str:
        """Return how many sources it has, as a link to them."""
        return _link(Source, {"machine__id__exact": machine.pk}, machine.sources_published)

    @admin.display(description="backups")
    def recent_backups(self, machine: Machine) -> str:
        """Return a link to its backups."""
        return _link(Backup, {"machine__id__exact": machine.pk}, "backups")

    @admin.action(description="Pause: no more backups until resumed", permissions=["operate"])
    def pause(self, request: HttpRequest, chosen: QuerySet[Machine]) -> None:
        """Pause machines."""
        self.do_for_each(request, chosen, "paused", operations.pause)

    @admin.action(description="Resume", permissions=["operate"])
    def resume(self, request: HttpRequest, chosen: QuerySet[Machine]) -> None:
        """Resume machines."""
        now = clock.now()
        self.do_for_each(
            request, chosen, "resumed", lambda machine: operations.resume(machine, now)
        )

    @admin.action(description="Back up all sources now", permissions=["operate"])
    def backup_now(self, request: HttpRequest, chosen: QuerySet[Machine]) -> None:
        """Make all their sources due."""
        now = clock.now()
        self.do_for_each(
            request,
            chosen,
            "asked for a backup",
            lambda machine: operations.request_backups(machine, (), now),
        )

    @admin.action(description="Retire: gone for good, backups are kept", permissions=["operate"])
    def retire(self, request: HttpRequest, chosen: QuerySet[Machine]) -> None:
        """Retire machines."""
        now = clock.now()
        self.do_for_each(request, chosen, "retired", lambda machine: machine.retire(now))

    @admin.action(
        description="Reinstate: take back what was retired or disabled", permissions=["operate"]
    )
    def reinstate(self, request: HttpRequest, chosen: QuerySet[Machine]) -> None:
        """Take machines back."""
        now = clock.now()
        self.do_for_each(
            request, chosen, "reinstated", lambda machine: operations.reinstate(machine, now)
        )

    @admin.action(
        description="Let another machine restore this one's backups…", permissions=["operate"]
    )
    def allow_restore(self, request: HttpRequest, chosen: QuerySet[Machine]) -> HttpResponse | None:
        """Go to the form of a restore grant, with the machine filled in."""
        if chosen.count() != 1:
            self.message_user(request, "Choose one machine.", messages.ERROR)
            return None
        query = urlencode({"from_machine": chosen.get().pk})
        return HttpResponseRedirect(f"{reverse('admin:turku_api_restoregrant_add')}?{query}")


class AttentionFilter(admin.SimpleListFilter):
    """Sources that are overdue, failing, missed or unproven."""

    title = "attention"
    parameter_name = "attention"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        """Return the ways of being behind."""
        return [
            ("any", "needs attention"),
            ("overdue", "overdue"),
            ("failing", "failing"),
            ("missed", "missed its window"),
            ("unproven", "damaged or not proven"),
        ]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """Select the sources that are behind in the chosen way."""
        chosen = self.value()
        if chosen is None:
            return queryset
        now = clock.now()
        keys = {each.source.pk for each in find_behind(now) if chosen in ("any", each.kind.value)}
        if chosen in ("any", "unproven"):
            keys |= worst_by_source(find_unproven(now)).keys()
        return queryset.filter(pk__in=keys)


class SourceList(ChangeList):
    """A page of sources, looked at together for what is behind."""

    def get_results(self, request: HttpRequest) -> None:
        """Note on each source of the page in which way it is behind or not proven."""
        super().get_results(request)
        # Evaluated once: the same objects are shown.
        now = clock.now()
        behind = examine(self.result_list, now)
        shown = wanted_sources().filter(pk__in=[source.pk for source in self.result_list])
        unproven = worst_by_source(find_unproven(now, shown))
        for source in self.result_list:
            source.behind = behind.get(source.pk)
            source.unproven = unproven.get(source.pk)


@admin.register(Source)
class SourceAdmin(ReadOnlyAdmin):
    """Sources."""

    list_display = (
        "machine",
        "name",
        "state",
        "attention",
        "storage",
        "last_success_at",
        "next_due_at",
        "last_proven_at",
    )
    list_display_links = ("name",)
    list_filter = (AttentionFilter, "paused", "published", "storage", "shared_service")
    list_select_related = ("machine", "storage")
    search_fields = ("name", "path", "machine__unit_name", "machine__uuid")
    actions = ("pause", "resume", "backup_now")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Source]:
        """Read with the sources what explains their state."""
        return with_last_failure(super().get_queryset(request).select_related("machine", "storage"))

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        """Return our list."""
        return SourceList

    @admin.display(description="state")
    def state(self, source: Source) -> str:
        """Return the one word, the machine's if that stops it."""
        machine = machine_state(source.machine)
        return source_state(source) if machine == "active" else f"machine {machine}"

    @admin.display(description="why it needs attention")
    def attention(self, source: Any) -> str:
        """Return the sentence."""
        behind: Behind | None = source.behind
        unproven: Unproven | None = source.unproven
        words = []
        if behind is not None:
            words.append(f"{behind.kind.value}: {behind.reason}")
        if unproven is not None:
            words.append(f"{unproven.kind.value}: {unproven.reason}")
        return _wide(" ".join(words)) if words else "–"

    @admin.action(description="Pause: no more backups until resumed", permissions=["operate"])
    def pause(self, request: HttpRequest, chosen: QuerySet[Source]) -> None:
        """Pause sources."""
        self.do_for_each(request, chosen, "paused", operations.pause)

    @admin.action(description="Resume", permissions=["operate"])
    def resume(self, request: HttpRequest, chosen: QuerySet[Source]) -> None:
        """Resume sources."""
        now = clock.now()
        self.do_for_each(request, chosen, "resumed", lambda source: operations.resume(source, now))

    @admin.action(description="Back up now", permissions=["operate"])
    def backup_now(self, request: HttpRequest, chosen: QuerySet[Source]) -> None:
        """Make sources due."""
        now = clock.now()
        self.do_for_each(
            request,
            chosen,
            "asked for a backup",
            lambda source: operations.request_backups(source.machine, [source.name], now),
        )


@admin.register(StorageUnit)
class StorageUnitAdmin(ReadOnlyAdmin):
    """Storage units."""

    list_display = (
        "name",
        "state",
        "used",
        "available",
        "total",
        "high_water_mark",
        "source_count",
        "last_checkin_at",
    )
    list_filter = ("active", "paused", "published")
    search_fields = ("name", "ssh_ping_host", "comment")
    editable_fields = ("active", "high_water_mark", "comment")
    actions = ("pause", "resume")

    def get_queryset(self, request: HttpRequest) -> QuerySet[StorageUnit]:
        """Count the sources in the same query."""
        return _with_source_count(super().get_queryset(request))

    @admin.display(description="state")
    def state(self, unit: StorageUnit) -> str:
        """Return the one word."""
        return storage_state(unit)

    @admin.display(description="used")
    def used(self, unit: StorageUnit) -> str:
        """Return how full it is."""
        return f"{used_percent(unit):.0f}\N{NO-BREAK SPACE}%"

    @admin.display(description="available", ordering="space_available")
    def available(self, unit: StorageUnit) -> str | None:
        """Return the free space."""
        return _unbroken(human_size(unit.space_available * MIB))

    @admin.display(description="total", ordering="space_total")
    def total(self, unit: StorageUnit) -> str | None:
        """Return the whole space."""
        return _unbroken(human_size(unit.space_total * MIB))

    @admin.display(description="sources", ordering="sources_published")
    def source_count(self, unit: Any) -> str:
        """Return how many sources are kept here, as a link to them."""
        return _link(Source, {"storage__id__exact": unit.pk}, unit.sources_published)

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        """Let an operator's word on `active` stand, whatever relations announce."""
        if "active" in form.changed_data:
            obj.withdrawn = False
        super().save_model(request, obj, form, change)

    @admin.action(description="Pause: no more backups here until resumed", permissions=["operate"])
    def pause(self, request: HttpRequest, chosen: QuerySet[StorageUnit]) -> None:
        """Pause storage units."""
        self.do_for_each(request, chosen, "paused", operations.pause)

    @admin.action(description="Resume", permissions=["operate"])
    def resume(self, request: HttpRequest, chosen: QuerySet[StorageUnit]) -> None:
        """Resume storage units."""
        now = clock.now()
        self.do_for_each(request, chosen, "resumed", lambda unit: operations.resume(unit, now))


class SourceOfRecordFilter(admin.SimpleListFilter):
    """Lets a link select one machine's records, without a list of thousands beside the page."""

    title = "machine"
    parameter_name = "machine__id__exact"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        """Return the machine that a link chose, if any."""
        chosen = request.GET.get(self.parameter_name, "")
        machine = Machine.objects.filter(pk=chosen).first() if chosen.isdecimal() else None
        return [(str(machine.pk), str(machine))] if machine else []

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """Select the machine's records."""
        return queryset.filter(machine=self.value()) if self.value() else queryset


@admin.register(Backup)
class BackupAdmin(ReadOnlyAdmin):
    """The record of every backup."""

    list_display = (
        "time_begin",
        "unit_name",
        "source_name",
        "outcome",
        "took",
        "stored",
        "storage_name",
        "what",
    )
    list_filter = ("outcome", "time_begin", SourceOfRecordFilter)
    list_select_related = False
    search_fields = (
        "unit_name",
        "machine_uuid",
        "source_name",
        "storage_name",
        "snapshot",
        "summary",
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[Backup]:
        """Leave what a list doesn't show to the page of one record."""
        return super().get_queryset(request).order_by("-time_begin")

    @admin.display(description="took")
    def took(self, backup: Backup) -> str | None:
        """Return how long it took."""
        return _unbroken(human_duration(backup.time_end - backup.time_begin))

    @admin.display(description="stored", ordering="bytes_stored")
    def stored(self, backup: Backup) -> str | None:
        """Return what it added to the volume."""
        return _unbroken(human_size(backup.bytes_stored))

    @admin.display(description="summary")
    def what(self, backup: Backup) -> str:
        """Return the first line of the summary."""
        return _wide(first_line(backup.summary, 80))


@admin.register(Snapshot)
class SnapshotAdmin(ReadOnlyAdmin):
    """The snapshots that storage units say they hold."""

    list_display = (
        "name",
        "unit_name",
        "source_name",
        "storage_name",
        "state",
        "partial",
        "stored",
        "proven_at",
        "what",
        "reported_at",
    )
    list_filter = ("state", "partial", "storage", SourceOfRecordFilter)
    list_select_related = False
    search_fields = ("name", "unit_name", "machine_uuid", "source_name", "storage_name")

    @admin.display(description="stored", ordering="bytes_stored")
    def stored(self, snapshot: Snapshot) -> str | None:
        """Return what it takes up on the volume."""
        return _unbroken(human_size(snapshot.bytes_stored))

    @admin.display(description="what is wrong")
    def what(self, snapshot: Snapshot) -> str:
        """Return the first line of what its last verification found."""
        return _wide(first_line(snapshot.error, 80))


@admin.register(Hold)
class HoldAdmin(ReadOnlyAdmin):
    """The sources of which nothing expires; only on their storage unit can that be ended."""

    list_display = ("source", "storage", "since", "snapshot", "changed", "why")
    list_filter = ("storage",)
    list_select_related = ("source__machine", "storage")
    search_fields = ("source__name", "source__machine__unit_name", "source__machine__uuid")

    @admin.display(description="changed", ordering="share")
    def changed(self, hold: Hold) -> str:
        """Return which share of the files changed."""
        return "–" if hold.share is None else f"{hold.share:.0%}"

    @admin.display(description="why")
    def why(self, hold: Hold) -> str:
        """Return the sentence."""
        return _wide(hold.reason)


@admin.register(RegistrationKey)
class RegistrationKeyAdmin(ReadOnlyAdmin):
    """Registration keys; a secret is shown on the page that answers its making, and never again."""

    list_display = ("name", "kind", "active", "machine_count", "storage_count", "created_at")
    list_filter = ("kind", "active")
    search_fields = ("name", "comment")
    editable_fields = ("comment",)
    actions = ("disable", "disable_with_machines", "enable", "rotate")

    def get_queryset(self, request: HttpRequest) -> QuerySet[RegistrationKey]:
        """Count what registered in the same query."""
        counted: QuerySet[RegistrationKey] = (
            super()
            .get_queryset(request)
            .annotate(
                machines_registered=Count("machines", distinct=True),
                units_registered=Count("storage_units", distinct=True),
            )
        )
        return counted

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Let those add keys who were given the permission."""
        return AnyAdmin.has_add_permission(self, request)

    def get_readonly_fields(
        self, request: HttpRequest, obj: Model | None = None
    ) -> list[str] | tuple[Any, ...]:
        """Let a new key be named; an old one keeps its name and kind."""
        if obj is None:
            return ()
        return super().get_readonly_fields(request, obj)

    def get_fields(self, request: HttpRequest, obj: Model | None = None) -> list[Any]:
        """Ask for little."""
        if obj is None:
            return ["name", "kind", "comment"]
        return [
            *("name", "kind", "from_relation", "comment"),
            *("active", "disabled_at", "created_at"),
        ]

    @admin.display(description="machines", ordering="machines_registered")
    def machine_count(self, key: Any) -> int:
        """Return how many machines registered with it."""
        return int(key.machines_registered)

    @admin.display(description="storage units", ordering="units_registered")
    def storage_count(self, key: Any) -> int:
        """Return how many storage units registered with it."""
        return int(key.units_registered)

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        """Make a new key with a secret of its own."""
        if change:
            super().save_model(request, obj, form, change)
            return
        key, obj.secret_shown_once = RegistrationKey.create_with_secret(
            obj.name, obj.kind, obj.comment
        )
        obj.pk = key.pk

    def response_add(
        self, request: HttpRequest, obj: Any, post_url_continue: str | None = None
    ) -> HttpResponse:
        """Answer with the secret: it goes through no cookie, session or redirect."""
        return self._show_secret(request, obj, obj.secret_shown_once)

    @admin.action(description="Disable: let nothing new in", permissions=["operate"])
    def disable(self, request: HttpRequest, chosen: QuerySet[RegistrationKey]) -> None:
        """Disable keys; what registered with them goes on working."""
        now = clock.now()
        self.do_for_each(
            request, chosen, "disabled", lambda key: key.disable(with_machines=False, now=now)
        )

    @admin.action(description="Disable, and all that registered with it", permissions=["operate"])
    def disable_with_machines(
        self, request: HttpRequest, chosen: QuerySet[RegistrationKey]
    ) -> None:
        """Disable keys with their machines and storage units."""
        now = clock.now()
        self.do_for_each(
            request,
            chosen,
            "disabled with what registered",
            lambda key: key.disable(with_machines=True, now=now),
        )

    @admin.action(description="Enable: let newcomers in again", permissions=["operate"])
    def enable(self, request: HttpRequest, chosen: QuerySet[RegistrationKey]) -> None:
        """Enable keys."""
        self.do_for_each(request, chosen, "enabled", RegistrationKey.enable)

    @admin.action(description="Rotate: a new secret, shown once", permissions=["operate"])
    def rotate(
        self, request: HttpRequest, chosen: QuerySet[RegistrationKey]
    ) -> HttpResponse | None:
        """Give one key a new secret."""
        if chosen.count() != 1:
            self.message_user(request, "Choose one key.", messages.ERROR)
            return None
        key = chosen.get()
        secret = key.rotate()
        self.log_change(request, key, "rotated")
        return self._show_secret(request, key, secret)

    def _show_secret(
        self, request: HttpRequest, key: RegistrationKey, secret: str
    ) -> TemplateResponse:
        context = {
            **self.admin_site.each_context(request),
            "title": f"The secret of {key}",
            "key": key,
            "secret": secret,
            "opts": self.opts,
        }
        response = TemplateResponse(request, "turku_api/secret.html", context)
        response["Cache-Control"] = "no-store"
        return response


class RestoreGrantForm(AnyForm):
    """Who may restore whose snapshots, and for how many days."""

    days = forms.IntegerField(
        min_value=1,
        max_value=operations.GRANT_MAX.days,
        initial=operations.GRANT_DEFAULT.days,
        help_text="The grant ends by itself after so many days.",
    )

    class Meta:
        model = RestoreGrant
        fields = ("machine", "from_machine")
        labels = {"machine": "Who may restore", "from_machine": "Whose backups"}

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        for name in ("machine", "from_machine"):
            if name in self.fields:
                self.fields[name].required = True


@admin.register(RestoreGrant)
class RestoreGrantAdmin(ReadOnlyAdmin):
    """Restore grants."""

    form = RestoreGrantForm
    list_display = ("machine", "from_machine", "until", "has_ended", "created_by", "created_at")
    list_select_related = ("machine", "from_machine")
    list_filter = ("until",)
    search_fields = (
        "machine__unit_name",
        "from_machine__unit_name",
        "machine_uuid",
        "from_machine_uuid",
    )
    autocomplete_fields = ("machine", "from_machine")
    actions = ("revoke",)

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Let those add grants who were given the permission."""
        return AnyAdmin.has_add_permission(self, request)

    def get_readonly_fields(
        self, request: HttpRequest, obj: Model | None = None
    ) -> list[str] | tuple[Any, ...]:
        """Let only a new grant be filled in."""
        return () if obj is None else super().get_readonly_fields(request, obj)

    def get_fields(self, request: HttpRequest, obj: Model | None = None) -> list[Any]:
        """Ask for days; show the time."""
        if obj is None:
            return ["machine", "from_machine", "days"]
        return ["machine", "from_machine", "until", "created_by", "created_at"]

    @admin.display(description="ended", boolean=True)
    def has_ended(self, grant: RestoreGrant) -> bool:
        """Return whether it is over."""
        return grant.until <= clock.now()

    def changeform_view(
        self,
        request: HttpRequest,
        object_id: str | None = None,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        """Show the operation's own words when it refuses."""
        try:
            return super().changeform_view(request, object_id, form_url, extra_context)
        except TurkuError as error:
            self.message_user(request, f"Not possible: {error}", messages.ERROR)
            return HttpResponseRedirect(request.get_full_path())

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        """Make the grant as the command does."""
        grant = operations.allow_restore(
            obj.machine,
            obj.from_machine,
            timedelta(days=form.cleaned_data["days"]),
            clock.now(),
            request.user.get_username(),
        )
        obj.pk, obj.until = grant.pk, grant.until

    @admin.action(description="End at once", permissions=["operate"])
    def revoke(self, request: HttpRequest, chosen: QuerySet[RestoreGrant]) -> None:
        """End grants."""
        now = clock.now()
        self.do_for_each(request, chosen, "ended", lambda grant: grant.end(now))


@admin.register(RestoreOrder)
class RestoreOrderAdmin(ReadOnlyAdmin):
    """Restores that were ordered; the command orders them."""

    list_display = (
        "ordered_at",
        "unit_name",
        "source_name",
        "from_unit_name",
        "state",
        "ended_at",
        "restored_to",
        "what",
    )
    list_filter = ("state", "ordered_at", "dry_run")
    list_select_related = False
    search_fields = (
        "unit_name",
        "machine_uuid",
        "from_unit_name",
        "from_machine_uuid",
        "source_name",
        "ordered_by",
    )
    actions = ("cancel",)

    @admin.display(description="message")
    def what(self, order: RestoreOrder) -> str:
        """Return the first line of the message."""
        return _wide(first_line(order.message, 80))

    @admin.action(description="Cancel, unless a machine has fetched it", permissions=["operate"])
    def cancel(self, request: HttpRequest, chosen: QuerySet[RestoreOrder]) -> None:
        """Take orders back."""
        now = clock.now()
        self.do_for_each(
            request, chosen, "cancelled", lambda order: restore_orders.cancel(order, now)
        )


class FilterSetForm(AnyForm):
    """A filter set with its rules one a line."""

    rules = forms.CharField(
        widget=forms.Textarea(attrs={"rows": 15, "class": "vLargeTextField", "wrap": "off"}),
        help_text="One rsync filter rule a line, such as “- *.tmp” or “merge OTHER-SET”.",
        strip=False,
    )

    class Meta:
        model = FilterSet
        fields = ("name", "rules", "comment")

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        if self.instance.pk:
            self.initial["rules"] = "\n".join(self.instance.rules)

    def clean_rules(self) -> list[str]:
        """Return the rules; empty lines are passed over."""
        return [line for line in self.cleaned_data["rules"].splitlines() if line.strip()]


@admin.register(FilterSet)
class FilterSetAdmin(AnyAdmin):
    """Filter sets."""

    form = FilterSetForm
    list_display = ("name", "rule_count", "comment")
    search_fields = ("name", "comment")

    @admin.display(description="rules")
    def rule_count(self, filter_set: FilterSet) -> int:
        """Return how many rules it has."""
        return len(filter_set.rules)

    def has_delete_permission(self, request: HttpRequest, obj: FilterSet | None = None) -> bool:
        """Let a set be deleted that nothing uses."""
        allowed = super().has_delete_permission(request, obj)
        return allowed and (obj is None or not operations.users_of_filter_set(obj.name))


def _wide(sentence: str) -> str:
    """Give a sentence room in a table's column."""
    return format_html('<div style="min-width: 15rem">{}</div>', sentence)


def _unbroken(text: str | None) -> str | None:
    """Keep a number and its unit on one line."""
    return None if text is None else text.replace(" ", "\N{NO-BREAK SPACE}")


def _with_source_count(rows: QuerySet[Any]) -> QuerySet[Any]:
    """Count the sources of machines or storage units in the query that reads them."""
    counted: QuerySet[Any] = rows.select_related("registration_key").annotate(
        sources_published=Count("sources", filter=Q(sources__published=True))
    )
    return counted


def _link(model: type[Model], query: dict[str, Any], text: object) -> str:
    """Return a link to a list of a model's rows."""
    url = reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_changelist")
    return format_html('<a href="{}?{}">{}</a>', url, urlencode(query), text)
