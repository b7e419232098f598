import ipaddress
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.config.inventory import Host, Network
from testbed.hosts.facts import Facts
from testbed.hosts.facts.system import Firewall as FirewallFacts
from testbed.hosts.facts.system import System
from testbed.provision.aspects.firewall import Firewall, ports_of
from testbed.provision.packet_filter import Packet, iptables_lets_in, nft_lets_in

OPEN = "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD DROP [0:0]\n:DOCKER-USER - [0:0]\n-A DOCKER-USER -j RETURN\nCOMMIT\n"

# As ufw writes them, shortened: everything goes through chains that call each other.
UFW = """*filter
:INPUT DROP [4:160]
:ufw-before-input - [0:0]
:ufw-user-input - [0:0]
:ufw-not-local - [0:0]
:ufw-skip-to-policy-input - [0:0]
-A INPUT -j ufw-before-input
-A ufw-before-input -i lo -j ACCEPT
-A ufw-before-input -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A ufw-before-input -m conntrack --ctstate INVALID -j DROP
-A ufw-before-input -p icmp -m icmp --icmp-type 8 -j ACCEPT
-A ufw-before-input -p udp -m udp --sport 67 --dport 68 -j ACCEPT
-A ufw-before-input -j ufw-not-local
-A ufw-before-input -d 224.0.0.251/32 -p udp -m udp --dport 5353 -j ACCEPT
-A ufw-before-input -j ufw-user-input
-A ufw-not-local -m addrtype --dst-type LOCAL -j RETURN
-A ufw-not-local -m addrtype --dst-type MULTICAST -j RETURN
-A ufw-not-local -m limit --limit 3/min --limit-burst 10 -j LOG --log-prefix "[UFW BLOCK] "
-A ufw-not-local -j DROP
-A ufw-user-input -p tcp -m tcp --dport 22 -j ACCEPT
-A ufw-user-input -p tcp -m multiport --dports 7070:7071,8080 -m comment --comment "the lab's -j DROP" -j ACCEPT
-A ufw-user-input -s 10.83.0.0/24 -p tcp -m tcp --dport 7080 -j ACCEPT
COMMIT
"""


@pytest.mark.parametrize(
    ("port", "source", "lets_in"),
    [
        (22, None, True),
        (7070, None, True),
        (7071, "192.0.2.1", True),
        (7072, None, False),
        (7080, "10.83.0.1", True),
        (7080, "192.0.2.1", False),
        (7080, None, None),  # it depends on who asks
    ],
)
def test_ufws_chains_are_followed(port: int, source: str | None, lets_in: bool | None) -> None:
    assert iptables_lets_in(UFW, Packet(port, source)) is lets_in


@pytest.mark.parametrize(
    ("rules", "lets_in"),
    [
        ("", True),
        ("-A INPUT -p tcp -j REJECT --reject-with tcp-reset", False),
        ("-A INPUT ! -p tcp -j DROP", True),
        ("-A INPUT -p tcp -m tcp ! --dport 22 -j DROP", False),
        ("-A INPUT -i eth0 -j DROP", None),
        ("-A INPUT -i eth0 -j ACCEPT", True),  # whether it matches or not
        ("-A INPUT -m set --match-set bad src -j DROP", None),
        ("-A INPUT -j LOG --log-prefix x\n-A INPUT -j DROP", False),
        ("-A INPUT -g OTHER\n-A INPUT -j DROP\n-A OTHER -j RETURN", True),  # a goto does not come back
        ("-A INPUT -j OTHER\n-A INPUT -j DROP\n-A OTHER -j RETURN", False),
        ("-A INPUT -j LOOP\n-A LOOP -j LOOP", None),
        ("-A INPUT -j NOWHERE", None),
        ('-A INPUT -m comment --comment "not closed', None),
    ],
)
def test_rules_are_followed_as_the_kernel_does(rules: str, lets_in: bool | None) -> None:
    assert iptables_lets_in(OPEN.replace("COMMIT", rules), Packet(7070)) is lets_in


def nft(*rules: Any, policy: str = "accept", chains: tuple[Any, ...] = ()) -> str:
    base = {
        "family": "inet",
        "table": "filter",
        "name": "input",
        "hook": "input",
        "type": "filter",
        "prio": 0,
    }
    own = [{"rule": {"family": "inet", "table": "filter", "chain": "input", "expr": rule}} for rule in rules]
    entries = [{"metainfo": {"version": "1.0"}}, {"table": {"family": "inet", "name": "filter"}}]
    return json.dumps({"nftables": [*entries, {"chain": base | {"policy": policy}}, *chains, *own]})


def match(left: Any, right: Any, op: str = "==") -> dict[str, Any]:
    return {"match": {"op": op, "left": left, "right": right}}


PORT = {"payload": {"protocol": "tcp", "field": "dport"}}
SOURCE = {"payload": {"protocol": "ip", "field": "saddr"}}
STATE = {"ct": {"key": "state"}}
ACCEPT, DROP = {"accept": None}, {"drop": None}
NET = {"prefix": {"addr": "10.83.0.0", "len": 24}}


@pytest.mark.parametrize(
    ("text", "lets_in"),
    [
        (nft(), True),
        (nft(policy="drop"), False),
        (nft([match(PORT, 7070), ACCEPT], policy="drop"), True),
        (nft([match(PORT, 22), ACCEPT], policy="drop"), False),
        (nft([match(PORT, {"set": [22, {"range": [7000, 7100]}]}), ACCEPT], policy="drop"), True),
        (nft([match(PORT, {"set": [22]}, "!="), {"reject": None}]), False),
        (nft([match(STATE, ["established", "related"], "in"), ACCEPT], policy="drop"), False),
        (nft([match({"meta": {"key": "iifname"}}, "lo"), ACCEPT], policy="drop"), False),
        (nft([match({"meta": {"key": "iifname"}}, "eth0"), ACCEPT], policy="drop"), None),
        (nft([match(SOURCE, NET), match(PORT, 7070), ACCEPT], policy="drop"), None),
        (nft([{"counter": {"packets": 1}}, {"log": {}}], [DROP]), False),
        (nft([{"xt": None}, DROP]), None),
        (
            nft([match({"payload": {"protocol": "udp", "field": "dport"}}, 7070), ACCEPT], policy="drop"),
            False,
        ),
        ("not json", None),
        ("[]", None),
        ('{"nftables": [{"rule": 3}]}', None),
    ],
)
def test_nfts_rules_are_followed(text: str, lets_in: bool | None) -> None:
    assert nft_lets_in(text, Packet(7070)) is lets_in


def test_nfts_sets_and_chains_are_followed() -> None:
    chains = (
        {
            "set": {
                "family": "inet",
                "table": "filter",
                "name": "lab",
                "elem": [7070, {"elem": {"val": 7071}}],
            }
        },
        {"chain": {"family": "inet", "table": "filter", "name": "ours"}},
        {
            "rule": {
                "family": "inet",
                "table": "filter",
                "chain": "ours",
                "expr": [match(PORT, "@lab"), ACCEPT],
            }
        },
    )
    text = nft([{"jump": {"target": "ours"}}], policy="drop", chains=chains)
    assert [nft_lets_in(text, Packet(port)) for port in (7070, 7071, 7072)] == [True, True, False]
    known = nft([match(SOURCE, NET), ACCEPT], policy="drop")
    assert [nft_lets_in(known, Packet(1, source)) for source in ("10.83.0.9", "10.84.0.9")] == [True, False]


def test_tables_that_are_iptables_own_are_left_to_it() -> None:
    text = nft(policy="drop").replace('"inet"', '"ip"')
    assert nft_lets_in(text, Packet(1)) is False
    assert nft_lets_in(text, Packet(1), skip_iptables=True) is True


RULE = st.tuples(st.integers(1, 9), st.integers(0, 9), st.sampled_from(["ACCEPT", "DROP"]), st.booleans())


@settings(max_examples=60)
@given(st.lists(RULE, max_size=8), st.sampled_from(["ACCEPT", "DROP"]), st.integers(1, 12), st.booleans())
def test_both_spellings_of_the_same_rules_say_what_the_first_match_does(
    rules: list[tuple[int, int, str, bool]], policy: str, port: int, inside: bool
) -> None:
    source = "10.83.0.7" if inside else "192.0.2.7"
    lines, exprs, answer = [f":INPUT {policy} [0:0]"], [], policy == "ACCEPT"
    decided = False
    for low, span, action, from_net in rules:
        net = "-s 10.83.0.0/24 " if from_net else ""
        lines.append(f"-A INPUT {net}-p tcp -m tcp --dport {low}:{low + span} -j {action}")
        ports = match(PORT, {"range": [low, low + span]})
        exprs.append([*([match(SOURCE, NET)] if from_net else []), ports, {action.lower(): None}])
        in_net = ipaddress.ip_address(source) in ipaddress.ip_network("10.83.0.0/24")
        if not decided and low <= port <= low + span and (in_net or not from_net):
            answer, decided = action == "ACCEPT", True
    packet = Packet(port, source)
    assert iptables_lets_in("\n".join(lines), packet) is answer
    assert nft_lets_in(nft(*exprs, policy=policy.lower()), packet) is answer


@settings(max_examples=60)
@given(st.lists(st.sampled_from([*"AIj!,:\"'\n 01", " --dport ", "-p tcp ", "-s 1.2.3.4/33 "])), st.text())
def test_no_rules_make_the_judging_fail(parts: list[str], other: str) -> None:
    iptables_lets_in(":INPUT DROP\n-A INPUT " + "".join(parts), Packet(7070))
    nft_lets_in(other, Packet(7070))


@pytest.mark.parametrize(
    ("rules", "ufw", "hint"),
    [
        (
            {"iptables": UFW.replace("7070:7071", "1:2")},
            True,
            "sudo ufw allow proto tcp to any port 7070,7071",
        ),
        (
            {"iptables": ":INPUT DROP [0:0]"},
            False,
            "sudo iptables -I INPUT -p tcp -m multiport --dports 7070,7071",
        ),
        ({"nft": nft(policy="drop")}, False, "tcp dport { 7070, 7071 } accept"),
    ],
)
def test_closed_ports_are_a_failure_with_the_rule_that_opens_them(
    rules: dict[str, str], ufw: bool, hint: str
) -> None:
    facts = Facts("orin", system=System(firewall=FirewallFacts(rules, ufw)))
    device = Host.model_validate({"name": "orin", "role": "device", "address": "x"})
    (finding,) = Firewall().findings(device, facts, ())
    assert (finding.level, finding.text[-10:], hint in finding.hint) == ("failure", "7070, 7071", True)
    assert list(Firewall().findings(device, Facts("orin"), ())) == []


def test_the_ports_are_those_of_the_role() -> None:
    facts = Facts("bs", system=System(firewall=FirewallFacts({"iptables": ":INPUT DROP [0:0]"})))
    station = Host.model_validate({"name": "bs", "role": "base_station", "address": "x"})
    station._network = Network(artifact_port=8001, metrics_port=9009)
    (finding,) = Firewall().findings(station, facts, ())
    assert finding.text.endswith("TCP port 8001, 9009")
    mirror = Host.model_validate({"name": "orin", "role": "device", "address": "x"})
    mirror._network = Network(artifact_port=8001, artifact_mirrors=["orin"])
    assert ports_of(mirror) == [7070, 7071, 8001]
