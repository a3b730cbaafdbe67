"""Which GPUs of this host each of the cells gets that are made at the same time. No torch here."""

import shutil
import subprocess
from collections.abc import Mapping, Sequence

VISIBLE = "CUDA_VISIBLE_DEVICES"


def gpus_here(environment: Mapping[str, str]) -> list[str]:
    """Names of the GPUs that a process with this environment sees, as CUDA_VISIBLE_DEVICES has them."""
    told = environment.get(VISIBLE)
    if told is None:
        return [str(number) for number in range(_num_gpus())]
    names = [name.strip() for name in told.split(",")]
    # What CUDA does not know, such as -1, ends the list.
    ends = [at for at, name in enumerate(names) if not name or name.startswith("-")]
    return names[: min(ends, default=len(names))]


def _num_gpus() -> int:
    if shutil.which("nvidia-smi") is None:
        return 0
    listed = subprocess.run(
        ["nvidia-smi", "-L"], capture_output=True, text=True, encoding="utf-8", errors="replace", check=False
    )
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines()) if listed.returncode == 0 else 0


def gpus_of_jobs(gpus: Sequence[str], num_jobs: int, num_ranks: int) -> list[tuple[str, ...]]:
    """Deals the GPUs out: `num_ranks` of them to a job, in order, from the first again when all are dealt.

    Args:
        gpus: names.
        num_jobs: at the same time.
        num_ranks: of a job, each of which wants one.

    Returns:
        One tuple a job; () leaves the job what this process sees: there is no GPU, or no other job.
    """
    if not gpus or num_jobs == 1:
        return [()] * num_jobs
    places = [range(job * num_ranks, (job + 1) * num_ranks) for job in range(num_jobs)]
    # A job of more ranks than there are GPUs gets each once, and says itself what is wrong.
    return [tuple(dict.fromkeys(gpus[place % len(gpus)] for place in mine)) for mine in places]


def shortage(gpus: Sequence[str], num_jobs: int, num_ranks: int) -> str | None:
    """What to say when jobs share GPUs; None when they do not."""
    if not gpus or num_jobs == 1 or num_jobs * num_ranks <= len(gpus):
        return None
    return (
        f"--jobs {num_jobs}: {num_jobs * num_ranks} GPUs are wanted and {len(gpus)} found, so some cells share one; "
        f"--jobs {max(1, len(gpus) // num_ranks)} gives each its own"
    )
