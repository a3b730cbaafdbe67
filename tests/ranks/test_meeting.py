"""The place where nodes meet, looked at by the launcher before it waits for it."""

import argparse
import os
import socket
from collections.abc import Iterator
from datetime import timedelta

import pytest
import torch.distributed as dist
from torch.distributed.launcher import api

from infnet_rec.errors import UserError
from infnet_rec.launcher import rendezvous
from infnet_rec.launcher.rendezvous import look_at_meeting
from infnet_rec.launcher.torchrun import torchrun


def arguments(endpoint: str, **named: object) -> argparse.Namespace:
    """As torchrun has them where two nodes meet."""
    given = {"rdzv_conf": "read_timeout=600", "local_addr": None, "nnodes": "2", "rdzv_id": "job", **named}
    return argparse.Namespace(standalone=False, rdzv_backend="c10d", rdzv_endpoint=endpoint, **given)


@pytest.fixture
def port() -> int:
    """Free a moment ago."""
    with socket.create_server(("", 0)) as free:
        return free.getsockname()[1]


@pytest.fixture
def taken() -> Iterator[int]:
    """Something listens there and says nothing."""
    with socket.create_server(("", 0)) as listener:
        yield listener.getsockname()[1]


def test_a_free_port_of_this_machine_changes_nothing(port: int) -> None:
    args = arguments(f"localhost:{port}")
    look_at_meeting(args)
    assert args == arguments(f"localhost:{port}")


@pytest.mark.slow(smoke=["is_host=1"])
@pytest.mark.parametrize("conf", ["", "is_host=1"])
def test_a_port_in_use_is_a_fault(taken: int, conf: str) -> None:
    with pytest.raises(UserError, match=rf"localhost:{taken}: port {taken} of .* is in use, and not by this job; name"):
        look_at_meeting(arguments(f"localhost:{taken}", rdzv_conf=conf))


@pytest.mark.slow
def test_a_second_launcher_on_the_machine_of_the_first_is_no_fault() -> None:
    store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=10))
    endpoint = f"localhost:{store.port}"
    with pytest.raises(UserError, match="in use"):
        look_at_meeting(arguments(endpoint))
    # What torchrun's backend does first.
    store.compare_set("torch.rendezvous.job", "", "anything")
    look_at_meeting(arguments(endpoint))
    with pytest.raises(UserError, match="in use"):
        look_at_meeting(arguments(endpoint, rdzv_id="another"))


def test_a_port_that_a_job_has_just_left_is_free() -> None:
    """Its connections linger for a minute where the listener ended them, as it does when the job starts again."""
    with socket.create_server(("", 0)) as listener:
        port = listener.getsockname()[1]
        client = socket.create_connection(("localhost", port))
        connection, _ = listener.accept()
        connection.close()
        client.close()
    with pytest.raises(OSError, match="in use"), socket.socket() as strict:
        strict.bind(("", port))
    look_at_meeting(arguments(f"localhost:{port}"))


def test_a_name_that_nobody_has_is_a_fault_in_the_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rendezvous, "NAME_S", 1.5)
    with pytest.raises(
        UserError, match=r"no-such-node\.invalid:29500: no-such-node\.invalid does not resolve on .*; give"
    ):
        look_at_meeting(arguments("no-such-node.invalid:29500"))
    assert capsys.readouterr().err.count("does not resolve on") == 1


def test_a_name_that_comes_late_is_waited_for(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    """Pods have names when they have addresses; their launchers are told which of them is the first."""
    real, asked = socket.getaddrinfo, []

    def late(host: str, *rest: object, **named: object) -> object:
        asked.append(host)
        if len(asked) < 3:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return real("localhost", *rest, **named)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(socket, "getaddrinfo", late)
    monkeypatch.setattr(rendezvous, "NAME_S", 0.0)
    monkeypatch.setattr(rendezvous, "POLL_S", 0.01)
    args = arguments(f"pod-0.run:{port}", rdzv_conf="read_timeout=60,is_host=0")
    look_at_meeting(args)
    assert asked == ["pod-0.run"] * 3
    assert args.rdzv_conf == "read_timeout=60,is_host=0"


def test_an_endpoint_that_is_none_is_a_fault() -> None:
    with pytest.raises(UserError, match="--rdzv-endpoint node1:port: must be HOST:PORT"):
        look_at_meeting(arguments("node1:port"))


def test_ranks_get_the_address_that_the_others_know(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    address = rendezvous._address_towards(rendezvous.ANYWHERE)
    if not address:
        pytest.skip("this machine has no way to anywhere")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "")  # so that it is taken away again
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    args = arguments(f"{address}:{port}")
    look_at_meeting(args)
    assert args.local_addr == address
    # torchrun would not have taken this node for the first, if its name has another address.
    assert args.rdzv_conf == "read_timeout=600,is_host=1"
    assert os.environ["GLOO_SOCKET_IFNAME"] in {name for _, name in socket.if_nameindex()} - {"lo"}
    given = arguments(f"{address}:{port}", local_addr="node1")
    look_at_meeting(given)
    assert given.local_addr == "node1"


@pytest.mark.slow
def test_the_launcher_says_it_in_one_line(
    taken: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    # Both are changed for the whole process.
    monkeypatch.setattr(api, "LocalElasticAgent", api.LocalElasticAgent)
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    words = ["--nnodes=2", "--rdzv-backend=c10d", f"--rdzv-endpoint=localhost:{taken}", "--rdzv-id=job"]
    assert torchrun([*words, "-m", "infnet_rec.cli", "doctor"]) == 2
    said = capfd.readouterr().err
    assert said.startswith("infnet-rec: fault: --rdzv-endpoint localhost:")
    assert said.count("\n") == 1
