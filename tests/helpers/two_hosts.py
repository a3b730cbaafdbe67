"""Two hosts on one machine: network namespaces with names and interfaces of their own, and a cable between them."""

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

INTERFACE = "net0"
NEEDED = ("ip", "unshare", "mount", "hostname")
GONE_S = 10.0
# In the namespace of the network; names, too, are the host's own. What it starts takes the place of the shell.
ENTER = 'hostname "$0" && mount --bind "$1" /etc/hosts && mount --bind "$2" /etc/resolv.conf && exec "${@:3}"'
# Nobody listens there, so a name that the file of hosts does not have is refused at once. A name server that cannot be
# reached is asked again and again: 10 s a name.
NO_NAME_SERVER = "nameserver 127.0.0.1\n"


class NotHere(Exception):
    """This machine makes no hosts; the message is its own."""


@dataclass(slots=True)
class Host:
    """One host; everything that runs on it was started by `start`, or by what that started."""

    name: str
    address: str
    namespace: str
    hosts_file: Path
    resolver_file: Path
    _started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def enter(self) -> list[str]:
        """What a command is put behind to run there."""
        files = [str(self.hosts_file), str(self.resolver_file)]
        return ["ip", "netns", "exec", self.namespace, "unshare", "--uts", "bash", "-c", ENTER, self.name, *files]

    def start(
        self, command: Sequence[str], log: Path, environment: Mapping[str, str], folder: Path
    ) -> subprocess.Popen[bytes]:
        """Starts a command there; what it says is appended to the log."""
        with log.open("ab") as file:
            process = subprocess.Popen(
                [*self.enter, *command],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env=dict(environment),
                cwd=folder,
                start_new_session=True,
            )
        self._started.append(process)
        return process

    def pids(self) -> list[int]:
        """Processes that run there."""
        return [int(pid) for pid in _ip("netns", "pids", self.namespace).split()]

    def lose_power(self) -> None:
        """All its processes end at once, and none can say anything; the host can be used again."""
        deadline = time.monotonic() + GONE_S
        while pids := self.pids():
            assert time.monotonic() < deadline, f"{self.name}: processes {pids} do not end"
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            # Ours stay in the list of processes until somebody asks for them.
            for process in self._started:
                process.poll()
            time.sleep(0.01)

    def unplug(self) -> None:
        """Takes the cable out: what is sent is lost, and no connection ends."""
        _ip("-n", self.namespace, "link", "set", INTERFACE, "down")

    def plug_in(self) -> None:
        """See `unplug`."""
        _ip("-n", self.namespace, "link", "set", INTERFACE, "up")


@contextmanager
def two_hosts(folder: Path, names: tuple[str, str] = ("north", "south")) -> Iterator[tuple[Host, Host]]:
    """Makes two hosts that reach each other by name, and nothing else; afterwards they are gone, however it ended.

    Args:
        folder: for what the hosts know of each other.
        names: of the hosts.

    Raises:
        NotHere: a program is missing, or it is not permitted.
    """
    for program in NEEDED:
        if shutil.which(program) is None:
            raise NotHere(f"there is no program {program!r} here")
    resolver_file = folder / "resolv.conf"
    resolver_file.write_text(NO_NAME_SERVER)
    # A network of its own in each pair of namespaces, so addresses can be the same in all.
    hosts = [
        Host(name, f"10.77.0.{number}", f"infnet-{os.getpid()}-{name}", folder / f"hosts-{name}", resolver_file)
        for number, name in enumerate(names, 1)
    ]
    for host, other in (hosts, hosts[::-1]):
        # As Debian installs it: its own name is for itself only, so nobody can be told to call it by that.
        known = f"127.0.0.1 localhost\n127.0.1.1 {host.name}\n{other.address} {other.name}\n"
        host.hosts_file.write_text(known)
    made: list[Host] = []
    try:
        try:
            _remove_leftovers()
            for host in hosts:
                _ip("netns", "add", host.namespace)
                made.append(host)
            one, other = (host.namespace for host in hosts)
            _ip("link", "add", INTERFACE, "netns", one, "type", "veth", "peer", "name", INTERFACE, "netns", other)
            for host in hosts:
                _ip("-n", host.namespace, "address", "add", f"{host.address}/24", "dev", INTERFACE)
                for interface in ("lo", INTERFACE):
                    _ip("-n", host.namespace, "link", "set", interface, "up")
            for host, other in (hosts, hosts[::-1]):
                _ip("-n", host.namespace, "route", "add", "default", "via", other.address)
            _try_out(hosts)
        except (OSError, subprocess.CalledProcessError) as error:
            said = getattr(error, "stderr", "").strip()
            raise NotHere(f"network namespaces are not permitted here: {said or error}") from error
        yield hosts[0], hosts[1]
    finally:
        for host in made:
            with suppress(AssertionError):
                host.lose_power()
            # With the last namespace its end of the cable goes, and with that the other end.
            _ip("netns", "delete", host.namespace)


def _remove_leftovers() -> None:
    """Hosts whose makers were killed."""
    for maker, name in re.findall(r"^infnet-(\d+)-(\S+)", _ip("netns", "list"), re.MULTILINE):
        if not Path("/proc", maker).exists():
            left = Host(name, "", f"infnet-{maker}-{name}", Path(), Path())
            left.lose_power()
            _ip("netns", "delete", left.namespace)


def _try_out(hosts: Sequence[Host]) -> None:
    """A container may permit the network and not the name."""
    for host in hosts:
        subprocess.run([*host.enter, "true"], check=True, capture_output=True, text=True)


def _ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout
