"""The account that the API's data belong to."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from turku_core.api.commands import become_owner

USER, GROUP = 4711, 4712


@pytest.fixture
def data_folder() -> Iterator[Path]:
    """A data folder that another account owns, and can reach."""
    root = Path(tempfile.mkdtemp(prefix="turku-api-account-"))
    root.chmod(0o755)
    folder = root / "turku-api"
    folder.mkdir(mode=0o700)
    os.chown(folder, USER, GROUP)
    yield folder
    shutil.rmtree(root)


@pytest.mark.needs_root
def test_root_acts_as_the_account_that_the_data_belong_to(data_folder: Path) -> None:
    # In a child, for there is no way back.
    child = os.fork()
    if child == 0:
        try:
            become_owner(data_folder)
            (data_folder / "file").write_text("")
            os._exit(0 if (os.getuid(), os.getgroups()) == (USER, [GROUP]) else 1)
        except BaseException:
            os._exit(2)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert (data_folder / "file").stat().st_uid == USER


@pytest.mark.needs_root
def test_root_stays_root_while_the_data_are_its_own(tmp_path: Path) -> None:
    become_owner(tmp_path)
    become_owner(tmp_path / "not-there")
    assert os.getuid() == 0
