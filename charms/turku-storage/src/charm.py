#!/usr/bin/env python3
"""The charm of a storage unit: events become one `reconcile`, and facts become the status."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path

import ops

import lvm
import storage_actions
import storage_status
from storage_options import StorageOptions
from storage_service import Service
from storage_volumes import (
    BLOCK,
    DATA,
    FOLDER,
    HOME,
    Attached,
    UnitVolume,
    choose,
    detached,
    on_root_disk,
    to_config,
)
from turku_charm import api_relation
from turku_charm.actions import Result, answer
from turku_charm.cos_agent import metrics_listen, publish_cos_agent
from turku_charm.statuses import Blocked, NotReady, status_of
from turku_core.errors import TurkuError
from volume_plan import Step, Unmount

logger = logging.getLogger(__name__)


class TurkuStorageCharm(ops.CharmBase):
    """Keeps the storage unit as the relation, the options and the attached storage say."""

    root = Path("/")
    _stored = ops.StoredState()  # type: ignore[no-untyped-call] # ops gives it no types

    def __init__(self, framework: ops.Framework) -> None:
        super().__init__(framework)
        # Kept only when the hook succeeds: one that is broken off starts the worker again.
        self._stored.set_default(started_with="")
        self._service = Service(self.charm_dir, self.root)
        self._problems: list[TurkuError] = []
        self._volumes: tuple[UnitVolume, ...] = ()
        self._explained: set[str] = set()  # the volumes whose absence has a reason in _problems
        self._has_looked = False
        on = self.on
        for event in (
            on.install, on.upgrade_charm, on.config_changed, on.start, on.update_status,
            on.secret_changed,
        ):  # fmt: skip
            framework.observe(event, self._on_change)
        for endpoint in (api_relation.ENDPOINT, "cos-agent"):
            for event in (
                on[endpoint].relation_created,
                on[endpoint].relation_joined,
                on[endpoint].relation_changed,
                on[endpoint].relation_departed,
                on[endpoint].relation_broken,
            ):
                framework.observe(event, self._on_change)
        for storage in (BLOCK, DATA):
            framework.observe(on[storage].storage_attached, self._on_storage_attached)
            framework.observe(on[storage].storage_detaching, self._on_storage_detaching)
        framework.observe(on.stop, self._on_stop)
        framework.observe(on.remove, self._on_stop)
        framework.observe(on.collect_unit_status, self._on_collect_unit_status)
        framework.observe(on["list-snapshots"].action, self._on_list_snapshots)
        framework.observe(on["restore"].action, self._on_restore)
        framework.observe(on["expire"].action, self._on_expire)
        framework.observe(on["verify"].action, self._on_verify)
        framework.observe(on["list-holds"].action, self._on_list_holds)
        framework.observe(on["release-hold"].action, self._on_release_hold)
        framework.observe(on["usage"].action, self._on_usage)

    # Events

    def _on_change(self, _: ops.EventBase) -> None:
        self._reconcile()

    def _on_storage_attached(self, _: ops.StorageAttachedEvent) -> None:
        # Juju attaches a new unit's storage before it installs it: all of it is used at once then.
        if self._service.workload.is_installed():
            self._reconcile()

    def _on_storage_detaching(self, event: ops.StorageDetachingEvent) -> None:
        """Let go of the storage. The worker stays down until the next hook: it's Juju's turn."""
        with self._noting():
            self._service.stop()
        self._has_looked = True
        self._prepare(without=event.storage.full_id)

    def _on_stop(self, _: ops.EventBase) -> None:
        try:
            self._service.remove()
        except TurkuError as error:
            # The unit goes in any case, and what is left behind does no harm.
            logger.error("the storage unit's services could not be taken away: %s", error)

    def _on_collect_unit_status(self, event: ops.CollectStatusEvent) -> None:
        if not self._has_looked:
            return  # an action changes nothing of what the status says
        for problem in self._problems:
            event.add_status(status_of(problem))
        if self._service.owner() is None:
            return
        try:
            usage = self._service.usage()
        except TurkuError as error:
            event.add_status(status_of(error))
            return
        root_disk = on_root_disk(self._volumes)
        now = datetime.now(timezone.utc)
        for status in storage_status.statuses(usage, root_disk, now, self._explained):
            event.add_status(status)

    # Actions

    def _on_list_snapshots(self, event: ops.ActionEvent) -> None:
        wanted = event.load_params(storage_actions.Chosen, errors="fail")
        self._act(event, lambda: storage_actions.list_snapshots(self._service.programs, wanted))

    def _on_usage(self, event: ops.ActionEvent) -> None:
        self._act(event, lambda: storage_actions.usage(self._service.programs))

    def _on_restore(self, event: ops.ActionEvent) -> None:
        wanted = event.load_params(storage_actions.Restore, errors="fail")
        self._act(event, lambda: storage_actions.restore(self._service.programs, wanted))

    def _on_expire(self, event: ops.ActionEvent) -> None:
        wanted = event.load_params(storage_actions.Expire, errors="fail")
        self._act(event, lambda: storage_actions.expire(self._service.programs, wanted))

    def _on_verify(self, event: ops.ActionEvent) -> None:
        wanted = event.load_params(storage_actions.Verify, errors="fail")
        self._act(event, lambda: storage_actions.verify(self._service.programs, wanted))

    def _on_list_holds(self, event: ops.ActionEvent) -> None:
        wanted = event.load_params(storage_actions.Chosen, errors="fail")
        self._act(event, lambda: storage_actions.list_holds(self._service.programs, wanted))

    def _on_release_hold(self, event: ops.ActionEvent) -> None:
        wanted = event.load_params(storage_actions.Release, errors="fail")
        self._act(event, lambda: storage_actions.release_hold(self._service.programs, wanted))

    def _act(self, event: ops.ActionEvent, body: Callable[[], Result]) -> None:
        def whole() -> Result:
            if self._service.owner() is None:
                raise NotReady("This storage unit isn't set up yet: see its status.")
            return body()

        answer(event, whole)

    # The one way in which things become as they should be

    def _reconcile(self) -> None:
        """Make the unit what is wanted of it; what can't be done is said in the status."""
        self._has_looked = True
        publish_cos_agent(self)
        if self._prepare():
            with self._noting():
                self._serve()

    def _prepare(self, without: str | None = None) -> bool:
        """Bring packages, volumes and configuration up to date; say whether the unit may serve.

        Args:
            without: The storage that is being detached.
        """
        devices, attached = self._attached(without)
        api: api_relation.Api | None = None
        with self._noting():
            api = api_relation.read_api(self.model)
        with self._noting():
            self._service.install_packages(lvm=bool(devices))
            if not self._service.workload.is_installed():
                self._service.workload.install()
            self.unit.set_workload_version(self._service.workload.version() or "")
        with self._noting():
            self._block_devices(devices)
        if self._service.workload.is_installed() and (api or self._service.knows_api):
            with self._noting():
                self._configure(api, attached)
        # What can't be configured now goes on as it was configured before.
        return self._service.is_configured

    def _attached(self, without: str | None) -> tuple[dict[str, Path | None], Attached]:
        """Return the block devices by storage, and what is attached altogether."""
        devices: dict[str, Path | None] = {}
        data: Path | None = None
        for storage in [*self.model.storages[BLOCK], *self.model.storages[DATA]]:
            if storage.full_id == without:
                continue
            location: Path | None = None
            with contextlib.suppress(ops.ModelError):
                location = storage.location
            if storage.name == BLOCK:
                devices[storage.full_id] = location
            elif location is not None:
                data = location
        is_mount = data is not None and data.is_mount()
        return devices, Attached(bool(devices), data, is_mount)

    def _block_devices(self, devices: dict[str, Path | None]) -> None:
        """Make one mounted volume of the block devices, or let it go."""

        def before(step: Step) -> None:
            if isinstance(step, Unmount):
                self._service.stop()

        left = lvm.ensure(self.root / HOME / BLOCK, self.root / "etc/fstab", devices, before)
        if left.waiting or left.problems:
            self._explained.add(BLOCK)
        self._problems += [NotReady(sentence) for sentence in left.waiting]
        self._problems += [Blocked(sentence) for sentence in left.problems]

    def _configure(self, api: api_relation.Api | None, attached: Attached) -> None:
        """Write the configuration. Raises TurkuError when it can't be; the former one stays."""
        options = self._options()
        host = options.public_address or self._address()
        former = self._service.own_values().get("volumes", {})
        in_use = self._service.volumes_in_use()
        self._volumes = choose(self.root, attached, in_use, former)
        usable = [
            volume
            for volume in self._volumes
            if volume.is_attached and (volume.path.is_mount() or not volume.mount_required)
        ]
        owner = self._service.ensure_owner(volume.path for volume in usable)
        self._problems += [Blocked(sentence) for sentence in detached(self._volumes)]
        self._explained |= {volume.name for volume in self._volumes if not volume.is_attached}
        for volume in usable:
            with self._noting():
                self._service.give_to(owner, volume.path)
        self._service.write_own(
            {
                "expiry_floor": options.expiry_floor,
                "expiry_grace_days": options.expiry_grace_days,
                "log_level": options.log_level,
                "metrics_listen": metrics_listen(self),
                "slots": options.slots,
                "snapshot_mode": options.unit_mode,
                "ssh_ping_host": host,
                "verify_interval_days": options.verify_interval_days,
                "whole_drill_interval_days": options.whole_drill_interval_days,
                "volumes": {
                    volume.name: to_config(
                        volume, options.high_water_mark, options.btrfs_volume_mode
                    )
                    for volume in self._volumes
                },
            },
            owner,
        )
        if api is not None:
            self._service.write_api(api, owner)
        if all(volume.name != FOLDER for volume in self._volumes):
            self._service.leave(self.root / HOME / FOLDER)

    def _options(self) -> StorageOptions:
        try:
            options = self.load_config(StorageOptions)
        except ValueError as error:
            raise Blocked(str(error)) from error
        if options.public_address and (units := self.app.planned_units()) > 1:
            raise Blocked(
                f"The option public-address is one host, and there are {units} units: empty it, or "
                f"deploy an application for each unit."
            )
        return options

    def _address(self) -> str:
        """Return where machines reach this unit."""
        relation = api_relation.find_relation(self.model)
        try:
            binding = self.model.get_binding(relation or api_relation.ENDPOINT)
            found = binding.network.ingress_addresses if binding is not None else []
        except ops.ModelError:
            found = []
        if not found:
            raise NotReady("Waiting for Juju to say which address this unit has.")
        return str(found[0])

    def _serve(self) -> None:
        """Let the unit serve with its configuration, and the API know of it."""
        service = self._service
        if self._stored.started_with != service.digest() or not service.is_registered:
            with self._noting():
                service.register()
        with self._noting():
            service.workload.upgrade(self._start)
        self.unit.set_workload_version(service.workload.version() or "")
        if self._stored.started_with != service.digest() or not service.is_running():
            self._start()
        self._introduce()

    def _start(self) -> None:
        digest = self._service.digest()
        self._service.start()
        self._stored.started_with = digest

    def _introduce(self) -> None:
        """Say over the relation which storage unit this is, and tell the API what has changed."""
        introduction = self._service.introduction()
        if introduction is None:
            return
        self.unit.set_ports(introduction.ssh_port)
        relation = api_relation.find_relation(self.model)
        if relation is None:
            return
        databag = introduction.to_databag()
        former = {key: relation.data[self.unit].get(key) for key in databag}
        api_relation.publish(relation, self.unit, databag)
        if former["name"] is not None and former != databag:
            self._service.register()

    @contextlib.contextmanager
    def _noting(self) -> Iterator[None]:
        """Note what goes wrong for the status, and go on."""
        try:
            yield
        except TurkuError as error:
            logger.warning("%s", error)
            self._problems.append(error)
        except OSError as error:
            where = f" ({error.filename})" if error.filename else ""
            self._problems.append(TurkuError(f"{error.strerror or error}{where}."))


if __name__ == "__main__":
    ops.main(TurkuStorageCharm)
