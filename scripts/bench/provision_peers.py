"""What Ansible and pyinfra are given by scripts/bench/provision.py: the steps of `testbed provision`, in their words.

Each step is the cheapest that the tool's own manual shows: what only has to be looked at is one command that is told of
and judged by nobody. The peers are spared what testbed does beyond it: no clock is compared with this machine's, and
nothing is recorded by which it could be undone.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["PEERS", "Peer", "Rack", "make_environment"]

#: What the environment of the peers holds.
REQUIREMENTS = ("ansible-core>=2.17,<3", "pyinfra>=3,<4")
#: torch computes: tried once for each version, as testbed does once for each state of the environment.
TORCH = """\
version=$({python} -c "from importlib.metadata import version; print(version('torch'))") || exit
test -e /var/tmp/torch-$version && exit
{python} -c "import torch; assert (torch.ones(32, 32) @ torch.ones(32, 32) == 32).all()" || exit
touch /var/tmp/torch-$version && echo changed
"""


@dataclass(frozen=True)
class Rack:
    """The hosts that all contenders provision.

    Attributes:
        addresses: Each device's address by its name.
        modes: The power mode that each device should be in: its name and its number there.
        packages: Debian packages that should be there.
        python: The interpreter of the payload code.
        system_python: The interpreter that Ansible's modules run by: one that has the module ``apt``.
        key_file: The private key that opens the hosts.
        known_hosts: The hosts' keys.
        archive: The payload code, a tar.gz.
        digest: The name of the payload code's folder.
    """

    addresses: Mapping[str, str]
    modes: Mapping[str, tuple[str, int]]
    packages: tuple[str, ...]
    python: str
    system_python: str
    key_file: Path
    known_hosts: Path
    archive: Path
    digest: str


@dataclass(frozen=True)
class Peer:
    """A tool that is set up for one rack.

    Attributes:
        argv: Its command line.
        folder: Where it runs.
        environ: What its environment has besides ours.
        summary: A regular expression of its summary; its group is how many changes there were, of a host or of all.
    """

    argv: tuple[str, ...]
    folder: Path
    summary: str
    environ: Mapping[str, str] = field(default_factory=dict)

    def changes(self, output: str) -> int:
        """Return how many changes were made, from what the tool printed."""
        found = re.findall(self.summary, output, re.MULTILINE)
        if not found:
            raise SystemExit(f"{self.argv[0]}: no summary:\n{output[-2000:]}")
        return sum(int(number) for number in found if number != "-")


def make_environment(folder: Path) -> Path:
    """Make the environment of the peers, unless it is there, and return its folder of programs."""
    programs = folder / "bin"
    if not ((programs / "ansible-playbook").exists() and (programs / "pyinfra").exists()):
        subprocess.run(["python3", "-m", "venv", "--clear", folder], check=True)
        pip = [programs / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *REQUIREMENTS], check=True)
    return programs


#: The payload code's digest, as it can be had from one command.
WHOLE = """\
cd ~/.testbed/code/{digest} 2>/dev/null || exit 0
find . -name '*.py' -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum
"""

PLAYBOOK = """
- hosts: devices
  gather_facts: true
  gather_subset: [min]
  tasks:
    - name: folders
      ansible.builtin.file: {path: "~/.testbed/{{ item }}", state: directory, mode: "0755"}
      loop: [code, objects, services, runs, models]
    - name: payload code
      ansible.builtin.unarchive:
        {src: "{{ archive }}", dest: ~/.testbed/code, creates: "~/.testbed/code/{{ digest }}"}
    - name: payload code is whole
      ansible.builtin.command: {argv: [sh, -c, "{{ whole }}"]}
      changed_when: false
    - name: the payload code in use
      ansible.builtin.file: {src: "code/{{ digest }}", dest: ~/.testbed/current, state: link}
    - name: Debian packages
      ansible.builtin.apt: {name: "{{ packages }}", state: present}
    - name: the user may talk to jtop
      ansible.builtin.user: {name: root, groups: [jtop], append: true}
    - name: power mode
      ansible.builtin.shell:
        cmd: nvpmodel -q | grep -qx 'NV Power Mode. {{ mode }}' || { nvpmodel -m {{ number }} && echo changed; }
      register: power
      changed_when: "'changed' in power.stdout"
    - name: clock
      ansible.builtin.command: {cmd: date +%s.%N}
      changed_when: false
    - name: swap
      ansible.builtin.command: {cmd: cat /proc/swaps}
      changed_when: false
    - name: disk
      ansible.builtin.command: {cmd: df --output=avail /root}
      changed_when: false
    - name: Python and torch
      ansible.builtin.command: {argv: [sh, -c, "{{ torch }}"]}
      register: torch_there
      changed_when: "'changed' in torch_there.stdout"
    - name: the jtop service
      ansible.builtin.command: {cmd: test -S /run/jtop.sock}
      changed_when: false
    - name: who may do what
      ansible.builtin.command: {cmd: sudo -n id}
      changed_when: false
    - name: firewall
      ansible.builtin.shell: {cmd: "iptables-save -t filter; nft -j list ruleset; true"}
      changed_when: false
    - name: kernel
      ansible.builtin.command: {cmd: uname -a}
      changed_when: false
"""

ANSIBLE_CFG = """
[defaults]
inventory = hosts.json
forks = 32
host_key_checking = true
retry_files_enabled = false
interpreter_python = {system_python}
nocows = true
[ssh_connection]
pipelining = true
ssh_args = -o ControlMaster=auto -o ControlPersist=60s -o UserKnownHostsFile={known_hosts} -o BatchMode=yes
"""


def ansible(rack: Rack, folder: Path, programs: Path) -> Peer:
    """Return Ansible, set up: 32 forks, pipelining, one SSH connection a host that its tasks share."""
    hosts = {
        name: {"ansible_host": address, "mode": rack.modes[name][0], "number": rack.modes[name][1]}
        for name, address in rack.addresses.items()
    }
    common = {
        "ansible_user": "root",
        "ansible_ssh_private_key_file": str(rack.key_file),
        "archive": str(rack.archive),
        "digest": rack.digest,
        "packages": list(rack.packages),
        "torch": TORCH.format(python=rack.python),
        "whole": WHOLE.format(digest=rack.digest),
    }
    (folder / "hosts.json").write_text(json.dumps({"devices": {"hosts": hosts, "vars": common}}))
    (folder / "site.yaml").write_text(PLAYBOOK)
    (folder / "ansible.cfg").write_text(
        ANSIBLE_CFG.format(known_hosts=rack.known_hosts, system_python=rack.system_python)
    )
    environ = {
        "ANSIBLE_CONFIG": str(folder / "ansible.cfg"),
        "ANSIBLE_HOME": str(folder / "home"),
        "ANSIBLE_LOCAL_TEMP": str(folder / "tmp"),
        "PATH": f"{programs}:{os.environ['PATH']}",
        "LC_ALL": "C.UTF-8",
    }
    return Peer(
        (str(programs / "ansible-playbook"), "site.yaml"),
        folder,
        r"^\S+ +: ok=\d+ +changed=(\d+) +unreachable=0 +failed=0",
        environ,
    )


DEPLOY = """
import shlex

from pyinfra import host
from pyinfra.facts.files import Directory
from pyinfra.facts.server import Command
from pyinfra.operations import apt, files, server

home = "/root/.testbed"
for name in ("code", "objects", "services", "runs", "models"):
    files.directory(path=f"{home}/{name}", mode="755")
if not host.get_fact(Directory, path=f"{home}/code/{host.data.digest}"):
    files.put(src=host.data.archive, dest=f"{home}/code/code.tar.gz")
    server.shell(commands=[f"tar -xzf {home}/code/code.tar.gz -C {home}/code"])
host.get_fact(Command, command=f"sh -c {shlex.quote(host.data.whole)}")
files.link(path=f"{home}/current", target=f"code/{host.data.digest}")
apt.packages(packages=host.data.packages)
server.user(user="root", groups=["jtop"], append=True)
if host.data.mode not in host.get_fact(Command, command="nvpmodel -q").split():
    server.shell(commands=[f"nvpmodel -m {host.data.number}"])
host.get_fact(Command, command="date +%s.%N")
host.get_fact(Command, command="cat /proc/swaps")
host.get_fact(Command, command="df --output=avail /root")
host.get_fact(Command, command=f"sh -c {shlex.quote(host.data.torch)}")
host.get_fact(Command, command="test -S /run/jtop.sock && echo there")
host.get_fact(Command, command="sudo -n id")
host.get_fact(Command, command="iptables-save -t filter; nft -j list ruleset; true")
host.get_fact(Command, command="uname -a")
"""


def pyinfra(rack: Rack, folder: Path, programs: Path) -> Peer:
    """Return pyinfra, set up: all hosts at once, one SSH connection a host."""
    common = {
        "ssh_user": "root",
        "ssh_key": str(rack.key_file),
        "ssh_known_hosts_file": str(rack.known_hosts),
        "ssh_strict_host_key_checking": "yes",
        "ssh_allow_agent": False,
        "ssh_look_for_keys": False,
        "archive": str(rack.archive),
        "digest": rack.digest,
        "packages": list(rack.packages),
        "torch": TORCH.format(python=rack.python),
        "whole": WHOLE.format(digest=rack.digest),
    }
    hosts = [
        (name, common | {"ssh_hostname": address, "mode": rack.modes[name][0], "number": rack.modes[name][1]})
        for name, address in rack.addresses.items()
    ]
    (folder / "inventory.py").write_text(f"devices = {hosts!r}\n")
    (folder / "deploy.py").write_text(textwrap.dedent(DEPLOY))
    return Peer(
        (str(programs / "pyinfra"), "--yes", "inventory.py", "deploy.py"),
        folder,
        r"^ +Grand total +\d+ +(\d+|-)",
        {"PATH": f"{programs}:{os.environ['PATH']}"},
    )


PEERS = {"pyinfra": pyinfra, "ansible": ansible}
