"""What cannot be asked of `infnet-rec plan`: each a fault of one line, before anything is planned."""

import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from infnet_rec import cli
from infnet_rec.errors import UserError

ROOT = Path(__file__).parents[3]
LARGE = ROOT / "configs" / "kuairand_27k_h100.toml"

FAULTS = {
    "-j 0x8 --hardware h100": "-j 0x8: must be NODESxRANKS",
    "-j 1x9 --hardware h100": "has 8 GPUs",
    "-j 1x8 --hardware h1000": "did you mean 'h100'?",
    "-j 1x8 --hardware absent.toml": "absent.toml: no such file",
    "-j 1x8": "--hardware: is missing",
    "--hardware h100": "-j: is missing",
    "--sweep 1x8,8 --hardware h100": "-j 8: must be NODESxRANKS",
    "--sweep 1x8,2x8 --hardware h100 --out x.json": "--out, --plot: are for the plan of one cluster",
    "-j 1x8 --hardware h100 --plot x.jpg": "--plot x.jpg: the picture is a PNG file",
    "-j 1x8 --hardware h100 --out nowhere/x.json": "there is no folder nowhere",
    "-j 1x8 --hardware h100 --out README.md": "exists and is not a plan",
    "-j 2x1 --hardware h100 --check": "-j 2x1 with --check: it is built on this machine",
    "-j 1x1 --hardware h100 --check --plot x.png": "are for the plan of one cluster, without --check",
    "-j 1x1,1x2 --hardware h100 --check": "--check: builds one cluster",
    "-j 1x7 --hardware h100": "does not divide by 7 ranks",
    "-j 1x8 --hardware h100 --set data.manifest=absent.json": "absent.json",
    "-j 1x8 --hardware h100 --set data.profile=ctx98": "profile 'ctx98' is not in store",
    '-j 1x8 --hardware h100 --set \'sharding.tables=[{match="vidio_id", precision="fp16"}]\'': "vidio_id",
    '-j 1x8 --hardware h100 --set \'sharding.tables=[{match="video_id", sharding="grid_shard"}]\'': "video_id",
    "-j 1x8 --hardware cpu-node --set train.sparse.optimizer=adam": "adam",
}


@pytest.mark.parametrize("words", FAULTS)
def test_what_cannot_be_asked_is_a_fault_of_one_line(words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    fault = CliRunner().invoke(cli.app, ["plan", str(LARGE), *shlex.split(words)]).exception
    assert isinstance(fault, UserError), repr(fault)
    assert FAULTS[words] in str(fault) and "\n" not in str(fault)
