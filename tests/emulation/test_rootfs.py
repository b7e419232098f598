"""Which parts of this machine an emulated host sees."""

from __future__ import annotations

from testbed.emulation.preflight import missing_programs
from testbed.emulation.rootfs import covered, extra_layers

MOUNTS = """\
1 0 0:1 / / rw - ext4 /dev/vda rw
2 1 0:2 / /home rw - ext4 /dev/vdb rw
3 1 0:3 / /proc rw - proc proc rw
"""


def test_only_what_the_root_layer_does_not_show_needs_a_layer_of_its_own():
    needed = ["/usr", "/home/me/testbed", "/tmp/clone", "/opt/python", "/homework"]
    assert extra_layers(MOUNTS, needed) == ["/home/me/testbed", "/tmp/clone"]


def test_a_folder_on_a_mount_inside_another_needed_one_is_not_forgotten():
    mounts = f"{MOUNTS}4 2 0:4 / /home/me/testbed/.venv rw - ext4 /dev/vdc rw\n"
    needed = ["/home/me/testbed/.venv", "/home/me/testbed", "/home/me/testbed/docs", "/opt/x/.venv"]
    assert extra_layers(mounts, needed) == ["/home/me/testbed", "/home/me/testbed/.venv"]


def test_homes_are_covered_but_for_the_way_to_what_is_needed():
    folders = {
        "/root": [".ssh", ".pyenv", ".testbed"],
        "/root/.pyenv": ["versions", "plugins"],
        "/root/.pyenv/versions": ["3.11", "3.12"],
        "/home": ["me", "you"],
        "/home/me": ["testbed", "mail"],
    }
    needed = ["/root/.pyenv/versions/3.11", "/home/me/testbed"]
    assert set(covered(needed, lambda path: folders.get(path, []))) == {
        "/root/.ssh",
        "/root/.pyenv/plugins",
        "/root/.pyenv/versions/3.12",
        "/root/.testbed",
        "/home/me/mail",
        "/home/you",
    }


def test_a_home_that_is_needed_whole_is_left_alone():
    assert list(covered(["/root"], lambda path: ["x"] if path == "/root" else [])) == []


def test_missing_programs_are_named_with_their_debian_packages():
    found = missing_programs(lambda program: None if program in {"sshd", "nc"} else f"/usr/bin/{program}")
    assert found == {"sshd": "openssh-server", "nc": "netcat-openbsd"}
