"""Control groups of both versions, on fake trees."""

from __future__ import annotations

import pytest

from testbed.emulation.cgroups import Group, find_layout, lab_folders, memory_of, remove_tree, usage_ns

V1 = """\
22 1 0:21 / / rw - ext4 /dev/vda rw
30 22 0:30 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
31 22 0:31 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
32 22 0:32 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
"""
V2 = "30 22 0:30 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"


def machine(tmp_path, mounts, own):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/mountinfo").write_text(mounts)
    (tmp_path / "proc/self/cgroup").write_text(own)
    return tmp_path


def unified(tmp_path, controllers="cpuset cpu io memory pids", enabled="cpu memory"):
    root = machine(tmp_path, V2, "0::/user.slice/session-1.scope\n")
    top = root / "sys/fs/cgroup"
    top.mkdir(parents=True)
    (top / "cgroup.controllers").write_text(controllers)
    (top / "cgroup.subtree_control").write_text(enabled)
    return find_layout(root), top


def test_version_1_goes_below_the_own_group_of_each_controller(tmp_path):
    root = machine(tmp_path, V1, "5:memory:/job/7\n4:cpu,cpuacct:/\n0::/\n")
    layout = find_layout(root)
    assert not layout.unified
    assert layout.problems == ()
    cgroup = root / "sys/fs/cgroup"
    assert lab_folders(layout, "lab") == (
        cgroup / "cpu,cpuacct/testbed-lab",
        cgroup / "memory/job/7/testbed-lab",
        cgroup / "unified/testbed-lab",
    )


def test_a_host_with_a_systemd_has_groups_in_every_hierarchy_and_others_only_where_there_are_limits(tmp_path):
    more = (
        "33 22 0:33 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd\n"
        "34 22 0:34 / /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset\n"
    )
    own = "7:name=systemd:/\n6:cpuset:/\n5:memory:/job/7\n4:cpu,cpuacct:/\n0::/\n"
    root = machine(tmp_path, V1 + more, own)
    layout = find_layout(root)
    assert layout.hierarchies == ("cpu,cpuacct", "memory", "cgroup2", "name=systemd", "cpuset")
    cgroup = root / "sys/fs/cgroup"
    for name, text in {"cpus": "0-1", "mems": "0"}.items():
        for folder in (cgroup / "cpuset", cgroup / "cpuset/testbed-lab", cgroup / "cpuset/testbed-lab/nano"):
            folder.mkdir(parents=True, exist_ok=True)
            # The kernel makes these files with nothing in them: such a group takes no process.
            (folder / f"cpuset.{name}").write_text(text if folder == cgroup / "cpuset" else "")
    Group(layout, "lab", "nano", whole=True).make(cpu_cores=1, memory_mib=256)
    assert (cgroup / "systemd/testbed-lab/nano").is_dir()
    assert (cgroup / "cpuset/testbed-lab/nano/cpuset.cpus").read_text() == "0-1"
    assert len(Group(layout, "lab", "other").folders) == 2


def test_version_1_in_a_container_that_is_mounted_at_its_own_group(tmp_path):
    mounts = V1.replace("31 22 0:31 / ", "31 22 0:31 /docker/1 ")
    root = machine(tmp_path, mounts, "5:memory:/docker/1\n4:cpu,cpuacct:/\n")
    assert find_layout(root).memory == root / "sys/fs/cgroup/memory"


def test_version_1_limits(tmp_path):
    layout = find_layout(machine(tmp_path, V1, "5:memory:/\n4:cpu,cpuacct:/\n"))
    group = Group(layout, "lab", "nano")
    group.make(cpu_cores=1.5, memory_mib=512)
    group.add(77)
    cpu, memory = group.folders
    period_us = int((cpu / "cpu.cfs_period_us").read_text())
    assert int((cpu / "cpu.cfs_quota_us").read_text()) == 1.5 * period_us
    assert (memory / "memory.limit_in_bytes").read_text() == str(512 << 20)
    assert (cpu / "cgroup.procs").read_text() == (memory / "cgroup.procs").read_text() == "77"
    assert group.usage_file == cpu / "cpuacct.usage"


def test_version_2_limits(tmp_path):
    layout, top = unified(tmp_path)
    assert layout.unified
    group = Group(layout, "lab", "nano")
    group.make(cpu_cores=0.5, memory_mib=512)
    group.add(77)
    assert group.folders == (top / "testbed-lab/nano",)
    quota_us, period_us = (top / "testbed-lab/nano/cpu.max").read_text().split()
    assert int(quota_us) * 2 == int(period_us)
    assert (top / "testbed-lab/nano/memory.max").read_text() == str(512 << 20)
    assert (top / "testbed-lab/cgroup.subtree_control").read_text() in {"+cpu", "+memory"}
    assert group.usage_file == top / "testbed-lab/nano/cpu.stat"


def test_version_2_switches_controllers_on(tmp_path):
    layout, top = unified(tmp_path, enabled="")
    assert layout.problems == ()
    assert (top / "cgroup.subtree_control").read_text() == "+memory"


def test_a_controller_that_is_not_there_is_named_and_done_without(tmp_path):
    layout, top = unified(tmp_path, controllers="cpu", enabled="cpu")
    assert layout.memory is None
    assert layout.problems == (f"no memory controller in {top}",)
    group = Group(layout, "lab", "nano")
    group.make(cpu_cores=1, memory_mib=512)
    assert not (top / "testbed-lab/nano/memory.max").exists()
    assert memory_of(group.memory_file) == 0


def test_a_machine_without_control_groups(tmp_path):
    layout = find_layout(machine(tmp_path, "22 1 0:21 / / rw - ext4 /dev/vda rw\n", "0::/\n"))
    assert layout.parents == ()
    assert layout.problems == ("no control groups are mounted",)


def test_cpu_time_of_both_versions():
    assert usage_ns(b"12345\n", unified=False) == 12345
    assert usage_ns(b"usage_usec 12\nuser_usec 5\n", unified=True) == 12000
    with pytest.raises(ValueError, match="usage_usec"):
        usage_ns(b"user_usec 5\n", unified=True)


def test_removing_a_labs_groups_counts_them_and_waits_for_no_one(tmp_path):
    (tmp_path / "testbed-lab/nano").mkdir(parents=True)
    (tmp_path / "testbed-lab/bs").mkdir()
    assert remove_tree(tmp_path / "testbed-lab") == 3
    assert remove_tree(tmp_path / "testbed-lab") == 0
    (tmp_path / "testbed-lab").mkdir()
    (tmp_path / "testbed-lab/busy").write_text("")
    with pytest.raises(OSError, match="testbed-lab"):
        remove_tree(tmp_path / "testbed-lab", settle_s=0.05)
