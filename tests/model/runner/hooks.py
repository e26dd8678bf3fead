"""Running one hook or action of a unit on its machine, and keeping what it did if it ends well."""

from __future__ import annotations

import logging
import os
import shutil
import socketserver
import threading
import uuid
import zipfile
from collections.abc import Callable
from pathlib import Path

from tests.model.runner import client
from tests.model.runner.context import Action, Context
from tests.model.runner.entities import Charm, Entities, Unit
from tests.model.runner.machines import SHARED, Machine
from tests.model.runner.resolver import Hook
from tests.model.runner.tools import TOOLS, ToolError, run_tool

logger = logging.getLogger(__name__)

HOOK_SECONDS_MAX = 900.0
REQUEST_BYTES_MAX = 64 * 1024 * 1024
AGENTS = Path("/var/lib/juju/agents")


class ToolServer:
    """Answers the hook tools of one machine over a Unix socket in its shared folder."""

    def __init__(self, machine: Machine) -> None:
        self._contexts: dict[str, Context] = {}
        outer = self

        class Handler(socketserver.StreamRequestHandler):
            """One tool."""

            def handle(self) -> None:
                """Answer it."""
                request = self.rfile.read(REQUEST_BYTES_MAX).decode(errors="surrogateescape")
                answer = "\0".join(outer.answer(*_parts(request)))
                self.wfile.write(answer.encode(errors="surrogateescape"))

        self._install(machine.shared)
        self._server = socketserver.ThreadingUnixStreamServer(
            str(machine.shared / "socket"), Handler
        )
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @staticmethod
    def _install(shared: Path) -> None:
        tools = shared / "tools"
        tools.mkdir(parents=True, exist_ok=True)
        program = shared / "client.py"
        shutil.copyfile(str(client.__file__), program)
        program.chmod(0o755)
        for name in TOOLS:
            (tools / name).unlink(missing_ok=True)
            (tools / name).symlink_to("../client.py")

    def answer(self, context_id: str, tool: str, given: str, words: list[str]) -> tuple[str, ...]:
        """Run a tool; return its exit code, and what its caller is to print: errors, output."""
        context = self._contexts.get(context_id)
        if context is None:
            return "1", "ERROR this hook has ended\n", ""
        try:
            output = run_tool(context, tool, words, given)
        except ToolError as error:
            return "1", f"ERROR {error}\n", ""
        except Exception as error:
            logger.exception("%s %s", tool, words)
            return "1", f"ERROR in the runner: {error!r}\n", ""
        line_end = "\n" if output and not output.endswith("\n") else ""
        return "0", "", output + line_end

    def begin(self, context: Context) -> None:
        """Let a run's tools in."""
        self._contexts[context.id] = context

    def end(self, context: Context) -> None:
        """Turn them away again."""
        self._contexts.pop(context.id, None)

    def close(self) -> None:
        """Answer no more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _parts(request: str) -> tuple[str, str, str, list[str]]:
    context_id, tool, given, *words = request.split("\0")
    return context_id, tool, given, words


def unpack_charm(file: Path, folder: Path) -> None:
    """Unpack a .charm file with its modes."""
    with zipfile.ZipFile(file) as archive:
        for entry in archive.infolist():
            path = Path(archive.extract(entry, folder))
            mode = entry.external_attr >> 16 & 0o777
            if mode:
                path.chmod(mode)


def install_charm(machine: Machine, unit: Unit, charm: Charm) -> None:
    """Put the charm's files where the unit's agent has them; what the charm made there stays."""
    target = str(AGENTS / unit.tag / "charm")
    if unit.charm is not None:
        gone = sorted(_files(unit.charm.folder) - _files(charm.folder))
        names = b"".join(os.fsencode(path) + b"\0" for path in gone)
        machine.run(["xargs", "-0", "rm", "-f", "--"], folder=target, given=names)
    machine.put(charm.folder, target)
    unit.charm = charm


def _files(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob("*") if not path.is_dir()}


def run_hook(
    entities: Entities,
    unit: Unit,
    machine: Machine,
    server: ToolServer,
    lock: threading.RLock,
    log: Callable[[str], None],
    hook: Hook | None = None,
    action: Action | None = None,
) -> tuple[bool, Context]:
    """Run a hook or an action, and commit what it wrote if it ended with 0.

    Returns:
        Whether it ended well, and its context.
    """
    context = Context(
        id=f"{unit.tag}-{uuid.uuid4().hex[:12]}",
        entities=entities,
        unit=unit,
        hook=hook,
        action=action,
        lock=lock,
        addresses={"address": machine.address, "subnet": machine.network.subnet},
    )
    name = f"actions/{action.name}" if action is not None else f"hooks/{hook.name if hook else ''}"
    server.begin(context)
    try:
        folder = AGENTS / unit.tag / "charm"
        done = _dispatch(machine, environment_of(context, name), folder)
    finally:
        server.end(context)
    code, printed = done
    for line in (*printed.splitlines(), *context.log):
        log(f"{name}: {line}")
    log(f"{name}: ended with {code}")
    if code == 0:
        context.commit()
    return code == 0, context


def _dispatch(machine: Machine, environment: dict[str, str], folder: Path) -> tuple[int, str]:
    # The last line is the exit code: what a command prints and how it ends come back as one.
    script = "./dispatch; code=$?; echo; echo $code"
    printed = machine.run(
        ["sh", "-c", script], environment, str(folder), seconds_max=HOOK_SECONDS_MAX
    )
    text, _, code = printed.rstrip("\n").rpartition("\n")
    return int(code), text


def environment_of(context: Context, path: str) -> dict[str, str]:
    """Return the environment of a run, as Juju gives it."""
    unit, entities, hook = context.unit, context.entities, context.hook
    folder = str(AGENTS / unit.tag / "charm")
    usual = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/snap/bin"
    environment = {
        "PATH": f"{SHARED}/tools:{usual}",
        "JUJU_CHARM_DIR": folder,
        "CHARM_DIR": folder,
        "JUJU_DISPATCH_PATH": path,
        "JUJU_HOOK_NAME": hook.name if hook is not None else "",
        "JUJU_UNIT_NAME": unit.name,
        "JUJU_MODEL_NAME": entities.name,
        "JUJU_MODEL_UUID": entities.uuid,
        "JUJU_MACHINE_ID": unit.machine,
        "JUJU_PRINCIPAL_UNIT": unit.principal or "",
        "JUJU_AVAILABILITY_ZONE": "here",
        "JUJU_VERSION": "3.6.8",
        "JUJU_CONTEXT_ID": context.id,
        "JUJU_AGENT_SOCKET_ADDRESS": str(SHARED / "socket"),
        "JUJU_AGENT_SOCKET_NETWORK": "unix",
        "JUJU_API_ADDRESSES": "192.0.2.1:17070",
        "DEBIAN_FRONTEND": "noninteractive",
        "LANG": "C.UTF-8",
    }
    if hook is not None and hook.relation is not None:
        endpoint = hook.relation.ends[unit.application].name
        environment |= {
            "JUJU_RELATION": endpoint,
            "JUJU_RELATION_ID": f"{endpoint}:{hook.relation.id}",
            "JUJU_REMOTE_APP": hook.remote_application or "",
            "JUJU_REMOTE_UNIT": hook.remote_unit or "",
            "JUJU_DEPARTING_UNIT": hook.departing_unit or "",
        }
    if hook is not None and hook.secret is not None:
        secret = context.secrets[hook.secret]
        environment |= {
            "JUJU_SECRET_ID": f"secret:{secret.id}",
            "JUJU_SECRET_LABEL": context.labels.get(secret.id, ""),
            "JUJU_SECRET_REVISION": str(secret.latest),
        }
    if hook is not None and hook.storage is not None:
        environment |= {
            "JUJU_STORAGE_ID": hook.storage.id,
            "JUJU_STORAGE_LOCATION": hook.storage.location,
            "JUJU_STORAGE_KIND": hook.storage.kind,
        }
    if context.action is not None:
        environment |= {
            "JUJU_ACTION_NAME": context.action.name,
            "JUJU_ACTION_UUID": context.action.id,
            "JUJU_ACTION_TAG": f"action-{context.action.id}",
        }
    return environment
