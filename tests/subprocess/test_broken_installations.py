"""An installation that is broken in any way ends in a table with a remedy: tried on copies of this one that are broken.

A copy is an environment of its own whose packages are links, so that taking one away or damaging one costs nothing.
"""

import json
import os
import re
import subprocess
import sys
import venv
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest

from benchmarks.versions import SETS
from infnet_rec.diagnostics import doctor
from infnet_rec.diagnostics.installation import Requirement, import_faults, requirements, will_do

ROOT = Path(__file__).parents[2]


class Copy:
    """This environment again, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder, symlinks=True, with_pip=False)
        self.python = folder / "bin" / "python"
        (self.packages,) = folder.glob("lib/python3*/site-packages")
        for site in (Path(place) for place in sys.path if place.endswith("-packages")):
            for entry in site.iterdir():
                link = self.packages / entry.name
                # What points to a working tree is not copied: the tree is named by PYTHONPATH.
                if entry.suffix != ".pth" and not link.exists():
                    link.symlink_to(entry)

    def without(self, *names: str) -> None:
        """Takes packages and their records away."""
        pattern = re.compile(rf"({'|'.join(names)})(-[0-9].*(dist|egg)-info|\.py)?")
        found = [entry for entry in self.packages.iterdir() if pattern.fullmatch(entry.name)]
        assert found, f"there is no {names}"
        for entry in found:
            entry.unlink()

    def record(self, name: str, version: str) -> None:
        """Another version's record, in the place of the one that is there."""
        for entry in self.packages.glob(f"{name}-[0-9]*-info"):
            entry.unlink()
        folder = self.packages / f"{name}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: {version}\n")

    def replace(self, name: str, code: str) -> None:
        """A package of one file in the place of another."""
        (self.packages / name).unlink()
        (self.packages / name).mkdir()
        (self.packages / name / "__init__.py").write_text(code)

    def truncate_library(self, package: str) -> None:
        """One compiled library of a package is cut off, the rest is as it was."""
        folder = self.packages / package
        whole = folder.resolve()
        folder.unlink()
        folder.mkdir()
        libraries = [entry for entry in whole.iterdir() if entry.suffix == ".so"]
        assert libraries, f"{package} has no library"
        for entry in whole.iterdir():
            (folder / entry.name).symlink_to(entry)
        for library in libraries:
            (folder / library.name).unlink()
            (folder / library.name).write_bytes(library.read_bytes()[:4096])

    def ask(self, *words: str) -> subprocess.CompletedProcess[str]:
        around = {name: value for name, value in os.environ.items() if name != "PYTHONHOME"}
        return subprocess.run(
            [str(self.python), "-m", "infnet_rec.cli", *words],
            env={**around, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    return Copy(tmp_path / "environment")


TORCHREC = metadata.version("torchrec")
# The release that it is for.
TORCH = next(one.torch for one in SETS.values() if one.torchrec == TORCHREC)


def crash(copy: Copy) -> None:
    copy.replace("torch", "import os\nos.abort()")


def other_torch(copy: Copy) -> None:
    """Of another generation: what was built for it finds no names that it knows."""
    copy.record("torch", "2.9.0")
    copy.replace("torch", "__version__ = '2.9.0'\nraise OSError('libtorch.so: undefined symbol: _ZN2at4_ops5zeros')")


def nothing_at_all(copy: Copy) -> None:
    """Neither can the command line be read."""
    copy.without("torch", "typer", "pydantic(_core)?")


def both_fbgemms(copy: Copy) -> None:
    copy.record("fbgemm_gpu", "1.8.0")
    copy.without("torch")


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (crash, ["FAULT  torch", "ended the process that imported it with signal 6", "make clean && make install"]),
        (
            other_torch,
            [
                f"torch 2.9.0, torchrec {TORCHREC}, .* do not fit",
                f"pip install torch=={re.escape(TORCH)}",
                "undefined sym",
            ],
        ),
        (nothing_at_all, [r"torch \(not installed\)", r"FAULT  typer .* is needed", r"pip install 'pydantic"]),
        (
            both_fbgemms,
            ["FAULT  fbgemm build .* overwrite each other's files", "uninstall -y fbgemm-gpu fbgemm-gpu-cpu"],
        ),
    ],
)
def test_every_broken_installation_ends_in_a_table(
    copy: Copy, break_it: Callable[[Copy], None], words: list[str]
) -> None:
    break_it(copy)
    done = copy.ask("doctor", "configs/quickstart.toml", "--ranks", "2") if break_it is crash else copy.ask("doctor")
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    table = done.stdout
    for word in words:
        assert re.search(word, table), (word, table)
    rows = table.splitlines()
    assert re.fullmatch(r"\d+ of \d+ checks failed", rows[-1])
    for at, row in enumerate(rows):
        assert not row.startswith("FAULT") or "remedy" in rows[at + 1]


@pytest.mark.slow
def test_libraries_that_do_not_load_are_named_with_what_leans_on_them(copy: Copy) -> None:
    copy.truncate_library("fbgemm_gpu")
    copy.record("triton", "3.0.0")
    done = copy.ask("doctor", "--json")
    assert done.returncode == 3, done.stderr
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    broken = [name for name, check in checks.items() if not check["sound"]]
    assert "import fbgemm_gpu" in broken or "import torchrec" in broken, checks
    assert all(checks[name]["remedy"] for name in broken)
    assert checks["torch" if "torch" in checks else "fbgemm build"]["sound"]


def test_a_verb_says_in_one_line_what_is_missing(copy: Copy) -> None:
    copy.without("pydantic(_core)?")
    done = copy.ask("train", "configs/quickstart.toml")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "infnet-rec: fault: installation: No module named 'pydantic'; 'infnet-rec doctor' says what to do\n"
    )
    copy.without("typer")
    done = copy.ask("data", "check", "nowhere")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "No module named 'typer'" in done.stderr


def test_imports_are_tried_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, code in {
        "sound_one": "print('{noise}')",
        "raises_one": "raise ValueError('two\\nlines')",
        "ends_one": "import os; os._exit(9)",
        "hangs_one": "import time; time.sleep(600)",
    }.items():
        (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    names = ("raises_one", "ends_one", "sound_one", "no_such_one", "hangs_one")
    assert import_faults(names, timeout_s=3.0) == {
        "raises_one": "ValueError: two",
        "ends_one": "ended the process that imported it with exit code 9",
        "no_such_one": "ModuleNotFoundError: No module named 'no_such_one'",
        "hangs_one": "cannot be imported within 3 s",
    }


def test_versions_are_judged_as_they_are_asked_for() -> None:
    asked = [Requirement("pydantic", "<3,>=2.9"), Requirement("tqdm", ">=4.66"), Requirement("torch", ">=2.11")]
    (sound,) = doctor.check_packages(asked, {"pydantic": "2.12.0", "tqdm": "4.67", "torch": None})
    assert (sound.sound, sound.found) == (True, "2 there, in versions that will do")
    old, missing = doctor.check_packages(asked, {"pydantic": "1.10.2", "tqdm": None, "torch": "2.13.0"})
    assert old.found == "1.10.2; pydantic<3,>=2.9 is needed"
    assert missing.remedy.endswith("-m pip install 'tqdm>=4.66'")
    assert will_do("2.0.0rc1", ">=1,<3") and will_do("any", "one") and not will_do("3.1", "<3")
    assert {"torch", "pyyaml", "typer"} <= {requirement.name for requirement in requirements()}


def test_the_triton_of_torch_and_the_name_of_the_host() -> None:
    assert doctor.check_triton("3.6.0", "3.6.0").sound and doctor.check_triton(None, None).sound
    assert doctor.check_triton("3.5.0", "3.6.0").remedy.endswith("pip install triton==3.6.0")
    assert not doctor.check_triton(None, "3.6.0").sound
    assert doctor.check_host_name("localhost").state == "ok"
    unknown = doctor.check_host_name("no-such-host.invalid")
    assert (unknown.state, unknown.remedy) == ("warning", "echo '127.0.1.1 no-such-host.invalid' >> /etc/hosts")
