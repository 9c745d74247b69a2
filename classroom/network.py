"""What is the matter between a learner's machine and the class's cluster: in the words of a room with Wi-Fi."""

import contextlib
import ipaddress
import socket

import psutil

from classroom import server
from classroom.folder import Folder
from helpers.kafka import diagnosis

NOBODY, CERTIFICATE = 2, 4  # steps of diagnosis.Unreachable


def advice(error: diagnosis.Unreachable) -> str:
    """What a learner can do when the cluster of their card cannot be reached; empty where the error says it all."""
    if error.step == CERTIFICATE:
        return (
            "In class: another machine has the address of your card now, or the teacher began a new class; ask for a "
            "new card."
        )
    hosts = [address.host for address in diagnosis.addresses()]
    elsewhere = [host for host in hosts if is_in_another_network(host, own_networks())]
    if error.step < NOBODY:
        return "In class: join the teacher's Wi-Fi; where it does not know names, the card must have a number."
    if error.step > NOBODY:
        return ""
    if elsewhere:
        mine = ", ".join(str(network) for network in own_networks()) or "no network"
        return (
            f"In class: this machine is in {mine}, and {elsewhere[0]} is in another network. Join the teacher's "
            "Wi-Fi; if you are in it, the teacher's address has changed, and you need a new card."
        )
    if _refused(error):
        return (
            "In class: the machine is there, but nothing listens at this port. The teacher's `serve` does not run, or "
            "the teacher has another address now and you need a new card."
        )
    return (
        "In class: the firewall of the teacher's machine does not let this port in, the Wi-Fi keeps its devices apart "
        "(guest networks do), or the teacher has another address now and you need a new card."
    )


def _refused(error: BaseException) -> bool:
    while error.__cause__:
        error = error.__cause__
    return isinstance(error, ConnectionRefusedError)


def own_networks() -> list[ipaddress.IPv4Network]:
    """The IPv4 networks that this machine is in, without the loopback device's."""
    found = []
    for addresses in psutil.net_if_addrs().values():
        for address in addresses:
            if address.family == socket.AF_INET and address.netmask and not address.address.startswith("127."):
                with contextlib.suppress(ValueError):
                    found.append(ipaddress.IPv4Network(f"{address.address}/{address.netmask}", strict=False))
    return found


def is_in_another_network(host: str, mine: list[ipaddress.IPv4Network]) -> bool:
    """True for a private number that is in none of the networks: such addresses reach no farther than a room."""
    with contextlib.suppress(ValueError):
        number = ipaddress.IPv4Address(host)
        return number.is_private and not number.is_loopback and not any(number in network for network in mine)
    return False


def of_class(folder: Folder) -> tuple[str, str, str]:
    """How the class of this machine's teacher is: mark, text and advice of a line of `doctor`."""
    kept = folder.room()
    if server.is_gone(kept.address):
        return (
            "bad",
            f"its address {kept.address} is not this machine's any more "
            f"({', '.join(server.own_addresses()) or 'none'})",
            "Go back to that network, or start `serve` again and give out the new cards.",
        )
    if not folder.is_served():
        return "skipped", f"not being served ({kept.servers}, {len(kept.learners)} learners)", ""
    for port in range(kept.port, kept.port + kept.brokers):
        try:
            socket.create_connection((kept.address, port), timeout=5).close()
        except OSError as error:
            return (
                "bad",
                f"nobody answers at {kept.address}:{port} ({error.strerror or error})",
                "Stop `serve` and start it again.",
            )
    return "ok", f"{kept.servers} answers, {len(kept.learners)} learners", firewall(kept.port, kept.brokers)


def firewall(port: int, count: int = 1) -> str:
    """What to do, for `count` ports in a row, about a firewall. Whether one is on is not asked: each answers otherwise,
    and only a learner's machine shows whether learners get in."""
    last = port + count - 1
    ufw, firewalld = (f"{port}/tcp" if count == 1 else f"{port}{sign}{last}/tcp" for sign in ":-")
    return (
        "Whether this machine's firewall lets learners in is seen from theirs: doctor --card CARD. To let them in: "
        f"sudo ufw allow {ufw}, or sudo firewall-cmd --add-port={firewalld}, or on macOS allow incoming connections "
        "for java in System Settings, Network, Firewall."
    )
