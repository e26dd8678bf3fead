"""What holds for the whole tree: no traces of a machine, documentation that keeps up, the rules."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import pytest

TREE = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
COMMANDS = TREE / "docs/reference/commands.md"


def tracked_files() -> list[Path]:
    """Return the files that are part of the tree: what git knows, or would take."""
    listed = subprocess.run(
        ["git", "-C", str(TREE), "-c", f"safe.directory={TREE}", "ls-files",
         "--cached", "--others", "--exclude-standard", "-z"],
        capture_output=True,
        check=True,
    )  # fmt: skip
    paths = (TREE / name for name in listed.stdout.decode().split("\0") if name)
    return [path for path in paths if path.is_file()]


@lru_cache(maxsize=1)
def texts() -> dict[Path, str]:
    """Return every text file of the tree, but for this one, which names what it looks for."""
    found = {}
    for path in tracked_files():
        if path == Path(__file__).resolve():
            continue
        try:
            found[path.relative_to(TREE)] = path.read_text("utf-8")
        except UnicodeDecodeError:
            continue
    return found


def scripts() -> list[str]:
    """Return the names of the console scripts."""
    text = (TREE / "lib/pyproject.toml").read_text("utf-8")
    section = text.partition("[project.scripts]")[2].partition("\n[")[0]
    return re.findall(r"^([a-z-]+) = ", section, re.MULTILINE)


def matches(pattern: str) -> list[str]:
    """Return where in the tree a pattern stands, as ``path:line: text``."""
    return [
        f"{path}:{number}: {line.strip()[:100]}"
        for path, text in texts().items()
        for number, line in enumerate(text.splitlines(), 1)
        if re.search(pattern, line)
    ]


def imported_names(module: ast.Module) -> set[str]:
    """Return what a module imports, anywhere in it; from a package, each name with it."""
    names: set[str] = set()
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def help_of(*command: str) -> str:
    """Return what a console script says with --help."""
    done = subprocess.run(
        [str(BIN / command[0]), *command[1:], "--help"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout


@lru_cache(maxsize=1)
def api_helps() -> dict[str, str]:
    """Return what each of turku-api's commands says with --help, by name, from one process."""
    program = """
import json, django, pkgutil
django.setup()
from django.core.management import load_command_class
from turku_core.api.management import commands
names = [module.name for module in pkgutil.iter_modules(commands.__path__)]
print(json.dumps({
    name.replace("_", "-"):
        load_command_class("turku_core.api", name).create_parser("turku-api", name).format_help()
    for name in names
}))
"""
    environment = {**os.environ, "DJANGO_SETTINGS_MODULE": "tests.support.typing_settings"}
    environment.pop("TURKU_API_ROOT", None)
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=TREE,
        env=environment,
        timeout=60,
    )
    helps: dict[str, str] = json.loads(done.stdout)
    return helps


def helps_of(script: str) -> dict[str, str]:
    """Return what a script and each of its subcommands say with --help; its own is under ""."""
    own = help_of(script)
    if script == "turku-api":
        return {"": own, **api_helps()}
    names = re.findall(r"^    ([a-z][a-z-]*)(?:  |$)", own, re.MULTILINE)
    return {"": own, **{name: help_of(script, name) for name in names}}


def test_lock_files_pin_every_package_by_hash_and_name_no_registry() -> None:
    locks = [
        *sorted((TREE / "requirements").glob("*.txt")),
        *sorted((TREE / "charms").glob("*/requirements.txt")),
    ]
    assert [path.name for path in locks] == [
        "agent.txt", "api.txt", "build.txt", "charmcraft.txt", "dev.txt", "fuzz.txt", "juju.txt",
        "local.txt", "storage.txt",
        *["requirements.txt"] * 3,
    ]  # fmt: skip
    for path in locks:
        text = path.read_text("utf-8")
        assert "://" not in text
        for block in re.split(r"\n(?=[a-z])", text):
            if "==" in block:
                assert "--hash=sha256:" in block, block


def test_a_charm_s_lock_file_has_what_it_says_it_needs() -> None:
    for path in sorted((TREE / "charms").glob("*/requirements.in")):
        said = re.findall(r"^[A-Za-z0-9._-]+", path.read_text("utf-8"), re.MULTILINE)
        lock = path.with_suffix(".txt").read_text("utf-8")
        assert [name for name in said if f"\n{name.lower()}==" not in f"\n{lock}"] == []


def test_nothing_is_left_to_do_later() -> None:
    assert matches(r"\b(TODO|FIXME|XXX|HACK)\b") == []


def test_no_test_is_skipped_or_expected_to_fail() -> None:
    found = matches(r"pytest\.(skip|xfail|importorskip)|mark\.(skip|skipif|xfail)")
    # But for those on a Juju controller where there is none, in one place.
    assert [place for place in found if not place.startswith("tests/juju/conftest.py:")] == []


def test_every_ignored_type_error_says_why() -> None:
    assert matches(r"#\s*type:\s*ignore(\[[^]]*\])?\s*$") == []


def test_every_line_of_prior_art_about_these_parts_is_a_test() -> None:
    numbers = {
        int(number)
        for path, text in texts().items()
        if path.parts[0] == "tests"
        for number in re.findall(r"def test_prior_art_(\d+)_", text)
    }
    assert set(range(1, 37)) - numbers == set()


@pytest.mark.parametrize("role", ["agent", "api", "storage"])
def test_a_charm_imports_its_own_part_of_turku_and_no_other(role: str) -> None:
    others = {"agent", "api", "storage", "local"} - {role}
    wrong = []
    for path in (TREE / f"charms/turku-{role}/src").rglob("*.py"):
        for name in imported_names(ast.parse(path.read_text("utf-8"))):
            if name.startswith("turku_core.") and name.split(".")[1] in others:
                wrong.append(f"{path.name}: {name}")
    assert wrong == []


def test_no_two_charms_have_modules_of_one_name_but_for_the_charm_itself() -> None:
    names = [
        path.relative_to(TREE).parts[3]
        for path in TREE.glob("charms/*/src/*")
        if path.suffix == ".py" or (path / "__init__.py").exists()
    ]
    assert sorted(name for name in set(names) if names.count(name) > 1) in ([], ["charm.py"])


@pytest.mark.parametrize("script", scripts())
def test_the_reference_names_every_option_of_a_console_script(script: str) -> None:
    reference = COMMANDS.read_text("utf-8")
    section = re.search(rf"^## {script}$(.*?)(?=^## |\Z)", reference, re.MULTILINE | re.DOTALL)
    assert section is not None, f"docs/reference/commands.md has no section ## {script}"
    missing = []
    for name, text in helps_of(script).items():
        if name and f"`{name}`" not in section[1] and f"`{script} {name}" not in section[1]:
            missing.append(name)
        options = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text))
        missing += [
            f"{name} {option}".strip()
            for option in sorted(options - {"--help", "--version"})
            if f"`{option}" not in section[1]
        ]
    assert missing == []


@pytest.mark.parametrize("script", scripts())
def test_every_console_script_refuses_a_wrong_option_with_exit_code_2(script: str) -> None:
    done = subprocess.run(
        [str(BIN / script), "--no-such-option"], capture_output=True, check=False, timeout=60
    )
    assert done.returncode == 2


def test_documents_link_only_to_files_that_are_there() -> None:
    broken = []
    for path, text in texts().items():
        if path.suffix != ".md":
            continue
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
            if not (TREE / path).parent.joinpath(target).exists():
                broken.append(f"{path}: {target}")
    assert broken == []
