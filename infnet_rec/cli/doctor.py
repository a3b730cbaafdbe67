"""`infnet-rec doctor`: is this machine, are these ranks fit to train?"""

import socket
from pathlib import Path
from typing import Annotated

import typer

from infnet_rec.cli.options import AsJson, Overrides, Ranks, leave
from infnet_rec.errors import UserError
from infnet_rec.launcher.rank_environment import is_rank

EPILOG = """\b
Example:
  $ infnet-rec doctor configs/quickstart.toml --ranks 2
  ok     python         3.11
  ok     versions       torch 2.13.0+cpu, torchrec 1.8.0, fbgemm-gpu-cpu 1.8.0
  ...
  ok     same config    2 ranks agree, abc64ec374b7
  ok     same store     2 ranks agree, 70b490aedf88
  ok     all-to-all     gloo over lo: 0.97 GB/s a rank, 2.2 ms at 4 MiB; 286 us at 64 KiB; ...
  ok     clocks         within 864 us
  ok     memory         707 KiB of tables by the plan, 18.4 GiB of host memory free on ranks 0-1 (...)
  ok     open files     20,000 allowed
  ok     locked memory  8 MiB allowed; no InfiniBand needs more
  ok     shared memory  23.5 GiB free

  all sound"""

Size = Annotated[
    str | None, typer.Option("-j", metavar="1xRANKS", help="The same as --ranks RANKS; other nodes need torchrun.")
]


def doctor(
    config: Annotated[
        Path | None, typer.Argument(help="A run's TOML file: its store and plan are looked at too.")
    ] = None,
    overrides: Overrides = None,
    ranks: Ranks = 1,
    size: Size = None,
    as_json: AsJson = False,
) -> None:
    """Say whether the installation is sound, and what to do if not.

    With --ranks it starts that many here, under torchrun it is one of torchrun's, on any number of nodes: then it also
    says whether all ranks have the same configuration, code, store and versions, how fast they exchange, how far their
    clocks are apart, and whether memory and limits are enough. Training does the short form of this on every start.
    """
    overrides = overrides or []
    if overrides and config is None:
        raise UserError(f"--set {overrides[0]}: is laid on a configuration; name its file")
    if size is not None:
        ranks = _ranks_here(size)
    from infnet_rec.diagnostics import doctor as machine

    # What is looked at next needs a sound installation. Of ranks, whoever started them has looked.
    if not is_rank() and machine.broken():
        leave(machine.run_checks(json=as_json))
    if ranks > 1:
        from infnet_rec.trainer import local_ranks

        local_ranks.check_own(ranks)
        if config is not None:
            local_ranks.check_ranks(config, overrides, ranks)
        arguments = [*([str(config)] if config else []), *(f"--set={o}" for o in overrides)]
        local_ranks.launch_local_ranks(["doctor", *arguments, *(["--json"] if as_json else [])], ranks)
    try:
        from infnet_rec.diagnostics import doctor_ranks
    except Exception as error:  # a broken build raises whatever its loader raises
        first_line = (str(error).splitlines() or [""])[0]
        raise UserError(
            f"installation on {socket.gethostname()}: {type(error).__name__}: {first_line}; 'infnet-rec doctor', alone "
            "on that host, says what to do"
        ) from error
    leave(doctor_ranks.doctor_ranks(config, overrides, json=as_json))


def _ranks_here(text: str) -> int:
    from infnet_rec.launcher.job import parse_size

    size = parse_size(text)
    if size.max_nodes > 1:
        raise UserError(
            f"-j {text}: ranks are started on this machine only; for {size.max_nodes} nodes start on each of them "
            f"torchrun --nnodes={size.nodes} --nproc-per-node={size.ranks_per_node} --rdzv-backend=c10d "
            "--rdzv-endpoint=FIRST-NODE:29500 -m infnet_rec.cli doctor CONFIG"
        )
    return size.ranks_per_node
