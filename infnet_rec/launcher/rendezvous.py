"""Where the nodes of a job meet, looked at before torchrun waits for it: does it have an address, is its port free.

torchrun takes whatever listens on the port for the store of the job, waits ten minutes for what is not there, and takes
a node for the first by its name alone. Ranks call each other by the names that machines give themselves, which others
may not know; here they get the address by which the first node is reached, and gloo that address' interface.
"""

import argparse
import errno
import fcntl
import os
import socket
import struct
import subprocess
import sys
import time

from torch.distributed.elastic.rendezvous.utils import parse_rendezvous_endpoint

from infnet_rec.errors import UserError
from infnet_rec.launcher.rank_environment import LOOPBACK

DEFAULT_PORT = 29500
# Names of people are known or wrong; those of pods come with the pods, and then `is_host` is given.
NAME_S = 30.0
READ_TIMEOUT_S = 600.0
POLL_S = 1.0
# The key is that of torchrun's c10d backend for the state of a rendezvous.
ASK = """
import datetime, os, sys, threading
from torch.distributed import TCPStore
threading.Timer(5, os._exit, [1]).start()
host, port, job = sys.argv[1:]
store = TCPStore(host, int(port), is_master=False, timeout=datetime.timedelta(seconds=5))
os._exit(not store.check(["torch.rendezvous." + job]))
"""
ONE_NODE = ("1", "1:1")
# For documentation, RFC 5737: nobody has it, and the way to it is the way out. Nothing is sent.
ANYWHERE = "192.0.2.1"
SIOCGIFADDR = 0x8915


def look_at_meeting(args: argparse.Namespace) -> None:
    """Completes torchrun's arguments and the environment of its ranks with what this machine knows of itself.

    Args:
        args: as torchrun parsed them; `rdzv_conf` and `local_addr` may change.

    Raises:
        UserError: the endpoint has no address, or the port that this node should open is taken.
    """
    endpoint = args.rdzv_endpoint
    if args.local_addr is None and args.nnodes in ONE_NODE and (args.standalone or not endpoint):
        # torch gives ranks the name that the machine gives itself, which nobody has to know.
        args.local_addr = LOOPBACK
    if args.standalone or args.rdzv_backend != "c10d" or not endpoint:
        return
    try:
        host, port = parse_rendezvous_endpoint(endpoint, DEFAULT_PORT)
    except ValueError as error:
        raise UserError(f"--rdzv-endpoint {endpoint}: must be HOST:PORT, such as node1:29500: {error}") from error
    conf = dict(pair.split("=", 1) for pair in args.rdzv_conf.split(",") if "=" in pair)
    told = conf.get("is_host")
    wait_s = NAME_S if told is None else float(conf.get("read_timeout", READ_TIMEOUT_S))
    addresses = _addresses(host, endpoint, wait_s)
    is_first = any(map(_is_ours, addresses)) if told is None else told.lower() in ("1", "true", "t", "yes", "y")
    if is_first and port and (reason := _taken(port)):
        # A second agent of the job on this machine; torchrun takes it so when it is not told.
        if told is not None or not _is_of(args.rdzv_id, host, port):
            raise UserError(f"--rdzv-endpoint {endpoint}: port {port} of {socket.gethostname()} {reason}")
        is_first = False
    named = host in ("localhost", socket.gethostname()) or any(map(_is_loopback, addresses))
    if told is None and not named:
        # torchrun compares names, and would take no node for the first where an address is given.
        args.rdzv_conf = ",".join([*filter(None, [args.rdzv_conf]), f"is_host={int(is_first)}"])
    _name_interface(args, host, addresses)


def _addresses(host: str, endpoint: str, wait_s: float) -> list[str]:
    """IPv4 and IPv6 addresses of a name, once it has any."""
    deadline, said = time.monotonic() + wait_s, False
    while True:
        try:
            return [str(info[4][0]) for info in socket.getaddrinfo(host, None, proto=socket.IPPROTO_TCP)]
        except (OSError, UnicodeError) as error:
            here = socket.gethostname()
            if time.monotonic() > deadline:
                raise UserError(
                    f"--rdzv-endpoint {endpoint}: {host} does not resolve on {here}; give a name or address of the "
                    "first node that all nodes know"
                ) from error
            if not said:
                print(
                    f"infnet-rec: {host} does not resolve on {here} yet; waiting up to {wait_s:.0f} s", file=sys.stderr
                )
            said = True
            time.sleep(POLL_S)


def _is_ours(address: str) -> bool:
    """Only an address of this machine can be bound."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
            probe.bind((address, 0))
    except OSError:
        return False
    return True


def _taken(port: int) -> str:
    """Why the port cannot be opened; empty if it can. One that a job just left can, as the store reuses addresses."""
    try:
        socket.create_server(("", port)).close()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return "is in use, and not by this job; name another (PORT=29501), or end what listens there"
        return f"cannot be opened: {str(error.strerror).lower()}; name another (PORT=29501)"
    return ""


def _is_of(job: str, host: str, port: int) -> bool:
    """Whether what listens there is the store of this job."""
    # In a process of its own: a client of a store waits without end for what is no store, whatever timeout it is given,
    # and says so in a hundred lines of C++.
    asked = subprocess.run([sys.executable, "-c", ASK, host, str(port), job], capture_output=True, check=False)
    return asked.returncode == 0


def _name_interface(args: argparse.Namespace, host: str, addresses: list[str]) -> None:
    """The address under which the others find this node, and its interface for gloo; what was given stays."""
    if args.local_addr is not None:
        return
    if args.nnodes in ONE_NODE:
        args.local_addr = LOOPBACK if all(map(_is_ours, addresses)) else None
        return
    target = addresses[0]
    if _is_loopback(target):
        if host != socket.gethostname():
            return  # all on this machine
        target = ANYWHERE  # many a machine gives its own name an address that only it can use
    address = _address_towards(target)
    if not address or _is_loopback(address) or ":" in address:
        return
    args.local_addr = address
    interface = _interface_of(address)
    if interface:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)


def _address_towards(target: str) -> str:
    """This machine's address on the way to another; nothing is sent. Empty where there is no way."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in target else socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((target, 9))
            return str(probe.getsockname()[0])
    except OSError:
        return ""


def _interface_of(address: str) -> str:
    """The interface that has an IPv4 address."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe.fileno(), SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:
                continue  # has no address
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return ""


def _is_loopback(address: str) -> bool:
    return address.startswith("127.") or address == "::1"
