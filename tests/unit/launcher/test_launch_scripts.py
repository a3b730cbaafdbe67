"""What `infnet-rec launch` writes: read by bash, by a YAML parser and by a small Slurm."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from fake_slurm import FakeSlurm
from infnet_rec.errors import UserError
from infnet_rec.launcher.job import Size, parse_size
from infnet_rec.launcher.launch import check_hand_in, write_launch, write_script
from infnet_rec.planner.hardware import load_hardware, parse_cluster
from test_launch import ROOT, golden

QUICKSTART = ROOT / "configs" / "quickstart.toml"
ON_K8S = [
    "image=registry.example.com/infnet-rec:1",
    "mount=type=volume,src=runs,dst=/runs",
    "memory_gib=512",
    "cpus=96",
]
SHAPES = ["1x1", "1x8", "2x8", "1:2x8"]


def rendered(form: str, size: str, *settings: str, config: Path = QUICKSTART) -> str:
    return write_launch(config, ["train.dense.lr=3e-4"], size, form, Path("/runs/it's"), settings)["text"]


@pytest.mark.parametrize("size", SHAPES)
@pytest.mark.parametrize("form", ["torchrun", "sbatch", "k8s"])
def test_a_start_is_written_as_before(form: str, size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/opt/venv/bin/python")
    monkeypatch.chdir(ROOT)
    settings = ["env.NCCL_DEBUG=INFO", *(ON_K8S if form == "k8s" else ["cpus=96"] if size == "1x8" else [])]
    text = rendered(form, size, *settings, config=Path("configs/quickstart.toml"))
    golden(f"{form}_{size.replace(':', '_to_')}", text)


@pytest.mark.parametrize("size", SHAPES)
@pytest.mark.parametrize("form", ["torchrun", "sbatch"])
def test_bash_reads_the_script(form: str, size: str) -> None:
    read = subprocess.run(["bash", "-n"], input=rendered(form, size), capture_output=True, text=True)
    assert (read.returncode, read.stderr) == (0, "")


@pytest.mark.parametrize(("size", "num_pods"), [("1x8", 1), ("2x8", 2), ("1:2x8", 2)])
def test_the_manifest_is_a_job_and_a_service_that_belong_together(size: str, num_pods: int) -> None:
    service, job = yaml.safe_load_all(rendered("k8s", size, "name=late-run", *ON_K8S))
    assert (service["apiVersion"], service["kind"], service["spec"]["clusterIP"]) == ("v1", "Service", "None")
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    spec: dict[str, Any] = job["spec"]
    assert spec["completionMode"] == "Indexed"
    assert spec["completions"] == spec["parallelism"] == num_pods
    pod = spec["template"]
    assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    assert pod["spec"]["subdomain"] == service["metadata"]["name"]
    # What a policy for failed pods asks for.
    assert pod["spec"]["restartPolicy"] == "Never"
    assert spec["podFailurePolicy"]["rules"][0]["action"] == "FailJob"
    ignored = [rule for rule in spec["podFailurePolicy"]["rules"] if rule["action"] == "Ignore"]
    assert {"operator": "In", "values": [75]} in [rule.get("onExitCodes") for rule in ignored]
    (container,) = pod["spec"]["containers"]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 8, "cpu": "96", "memory": "512Gi"}
    assert all(isinstance(variable["value"], str) for variable in container["env"])
    volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
    mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
    assert mounts["/dev/shm"]["emptyDir"] == {"medium": "Memory"}
    assert mounts["/runs"]["persistentVolumeClaim"] == {"claimName": "runs"}
    shell, option, command = container["command"]
    assert (shell, option) == ("bash", "-c")
    if num_pods > 1:
        # The first pod's name: the Job's with its number, in the Service's domain.
        assert f"--rdzv-endpoint={job['metadata']['name']}-0.{service['metadata']['name']}:29500" in command
    said = subprocess.run(
        ["bash", "-c", re.sub("^exec python", "exec printf '%s\\\\n'", command)],
        env={"JOB_COMPLETION_INDEX": "0", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    words = said.stdout.splitlines()
    assert words[-3:] == [str(QUICKSTART), "--run-dir=/runs/it's", "--set=train.dense.lr=3e-4"]
    assert f"--nnodes={size.split('x')[0]}" in words
    assert ("--rdzv-conf=read_timeout=600,is_host=1" in words) == (num_pods > 1)


def schema_versions() -> list[str]:
    """Versions of Kubernetes whose schemas are there, from 1.26 on; written as 1.26.0."""
    folder = Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema"
    found = [path.name.removeprefix("v").removesuffix("-local-strict") for path in folder.glob("v*-local-strict")]
    return sorted((v for v in found if int(v.split(".")[1]) >= 26), key=lambda v: int(v.split(".")[1]))


@pytest.mark.parametrize("version", schema_versions())
def test_every_kubernetes_takes_the_manifest(version: str) -> None:
    """From 1.26, and from 1.31 where nodes may come and go, as the manifest's module says; nothing is unknown to it."""
    assert schema_versions()[0] == "1.26.0" and len(schema_versions()) >= 12
    for size in ("1x8", "8x8", "1:2x8"):
        for settings in (ON_K8S, [*ON_K8S, "user=1000", "gpus=0"]):
            service, job = yaml.safe_load_all(rendered("k8s", size, *settings))
            kubernetes_validate.validate(service, version, strict=True)
            takes_policy = int(version.split(".")[1]) >= 31 or ":" not in size
            try:
                kubernetes_validate.validate(job, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                assert not takes_policy and "successPolicy" in str(error), error
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate({**job, "spec": {**job["spec"], "completions": "two"}}, version, strict=True)


def test_a_pod_is_what_a_restricted_namespace_wants_where_a_user_is_named() -> None:
    """The rules of the Pod Security Standard "restricted" that a pod of ours could break."""
    _, job = yaml.safe_load_all(rendered("k8s", "8x8", *ON_K8S, "user=1000"))
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True and pod["securityContext"]["runAsUser"] == 1000
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert all({"emptyDir", "persistentVolumeClaim"} & set(volume) for volume in pod["volumes"])
    assert {"name": "HOME", "value": "/tmp"} in container["env"]
    # With one node's loss all pods fail; three such losses are allowed.
    assert job["spec"]["backoffLimit"] == 24
    # Without a user, the image's own is nobody's business.
    _, job = yaml.safe_load_all(rendered("k8s", "1x8", *ON_K8S))
    assert "runAsNonRoot" not in job["spec"]["template"]["spec"]["securityContext"]


KUBECTL = """#!/bin/bash
cat > /dev/null
echo "service/infnet-rec-train unchanged"
echo "job.batch/infnet-rec-train $STATE"
"""


def test_a_job_that_is_there_already_is_not_taken_for_started(tmp_path: Path) -> None:
    (tmp_path / "kubectl").write_text(KUBECTL)
    (tmp_path / "kubectl").chmod(0o755)
    asked = ["submit", str(QUICKSTART), "-j", "2x4", "--as", "k8s", "--run-dir", "runs/a", "--with", "image=a"]
    path = f"{tmp_path}:{os.environ['PATH']}"
    assert ask(*asked, PATH=path, STATE="created").returncode == 0
    there = ask(*asked, PATH=path, STATE="unchanged")
    assert (there.returncode, there.stdout, there.stderr.count("\n")) == (2, "", 1)
    assert "a Job 'infnet-rec-train' is there already" in there.stderr


@pytest.mark.parametrize("num_nodes", [1, 2])
@pytest.mark.parametrize("size", ["1x4", "2x4", "3:4x4"])
def test_slurm_trains_on_no_other_number_of_nodes(size: str, num_nodes: int, tmp_path: Path) -> None:
    slurm = FakeSlurm(tmp_path)
    config = tmp_path / "a.toml"
    config.write_text(QUICKSTART.read_text().replace("= 512", "= 768"))
    done = slurm.run(rendered("sbatch", size, config=config), num_nodes)
    asked = parse_size(size)
    if asked.min_nodes <= num_nodes <= asked.max_nodes:
        assert (done.returncode, done.stderr) == (0, "")
        return
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and f"fault: --nodes={num_nodes}: this script is for" in done.stderr
    assert slurm.asked("python") == []


@pytest.mark.parametrize("at", ["checks", "ranks"])
def test_a_signal_before_anything_listens_is_try_again(at: str, tmp_path: Path) -> None:
    slurm = FakeSlurm(tmp_path)
    done = slurm.run(rendered("sbatch", "1x4"), 1, 143, **({"FAKE_CHECKS_CODE": "143"} if at == "checks" else {}))
    assert (done.returncode, slurm.asked("scontrol")) == (75, ["requeue 4321"])
    assert len(slurm.asked("python")) == (at == "ranks")


@pytest.mark.parametrize("num_nodes", [1, 2])
@pytest.mark.parametrize("code", [0, 1, 75])
def test_slurm_runs_an_agent_a_node_and_takes_back_what_can_go_on(tmp_path: Path, num_nodes: int, code: int) -> None:
    slurm = FakeSlurm(tmp_path)
    done = slurm.run(rendered("sbatch", f"{num_nodes}x4"), num_nodes, code)
    assert (done.returncode, done.stderr) == (code, "")
    started = slurm.asked("python")
    assert [line.split(":")[0] for line in started] == [f"node {node} threads 3" for node in range(num_nodes)]
    where = f"--rdzv-endpoint={socket.gethostname()}:24321 --rdzv-id=4321" if num_nodes > 1 else "--standalone"
    assert all(where in line and f"train {QUICKSTART} --run-dir=/runs/it's" in line for line in started)
    assert slurm.asked("scontrol") == (["requeue 4321"] if code == 75 else [])


def test_slurm_starts_nothing_where_a_node_lacks_what_it_needs(tmp_path: Path) -> None:
    slurm = FakeSlurm(tmp_path)
    config = tmp_path / "a.toml"
    config.write_text(QUICKSTART.read_text())
    script = rendered("sbatch", "2x4", config=config)
    unknown = slurm.run(script, 2, FAKE_HEAD="no-such-node.invalid")
    assert unknown.returncode == 2
    assert "infnet-rec: fault: no-such-node.invalid: does not resolve on" in unknown.stderr
    with socket.create_server(("", 24321), family=socket.AF_INET):
        taken = slurm.run(script, 2)
    assert taken.returncode == 2
    assert taken.stderr.count("\n") == 1
    assert f"port 24321 of {socket.gethostname()}: is in use" in taken.stderr
    config.unlink()
    missing = slurm.run(script, 2)
    assert missing.returncode == 2
    assert f"fault: {config}: is not on" in missing.stderr
    assert slurm.asked("python") == slurm.asked("scontrol") == []


def test_torchrun_by_hand_asks_for_the_first_node(tmp_path: Path) -> None:
    slurm = FakeSlurm(tmp_path)
    script = rendered("torchrun", "2x4")
    assert "HOST: set it to the name of the first node" in slurm.run(script, 1).stderr
    assert "no-such-node.invalid: does not resolve" in slurm.run(script, 1, HOST="no-such-node.invalid").stderr
    assert slurm.asked("python") == []
    assert slurm.run(script, 1, HOST="localhost", OMP_NUM_THREADS="7").returncode == 0
    (line,) = slurm.asked("python")
    assert line.startswith("node  threads 7: -m infnet_rec.launcher.torchrun --nnodes=2 --nproc-per-node=4")
    assert "--rdzv-endpoint=localhost:29500" in line


def ask(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "infnet_rec.cli", *arguments]
    around = {**os.environ, **environment}
    return subprocess.run(command, cwd=ROOT, env=around, capture_output=True, text=True, timeout=60)


SBATCH = """#!/bin/bash
read -r first
[ "$first" = "#!/bin/bash" ] || exit 9
[ "${SBATCH_PARTITION:-}" = gpu ] || { echo "sbatch: error: invalid partition" >&2; exit 1; }
cat > "$HANDED_IN"
echo "Submitted batch job 7"
"""


def test_a_script_is_handed_in_at_once_where_there_is_a_scheduler(tmp_path: Path) -> None:
    asked = ["submit", str(QUICKSTART), "-j", "2x4", "--as", "sbatch", "--run-dir", "runs/a"]
    handed_in, path = tmp_path / "handed_in", f"{tmp_path}:{os.environ['PATH']}"
    absent = ask(*asked, PATH="/nowhere")
    assert (absent.returncode, absent.stdout) == (2, "")
    assert absent.stderr.startswith(f"infnet-rec: fault: --as sbatch: there is no sbatch on {socket.gethostname()}; ")
    assert absent.stderr.count("\n") == 1
    (tmp_path / "sbatch").write_text(SBATCH)
    (tmp_path / "sbatch").chmod(0o755)
    refused = ask(*asked, PATH=path, HANDED_IN=str(handed_in))
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == "infnet-rec: fault: --as sbatch: sbatch refused it: sbatch: error: invalid partition\n"
    done = ask(*asked, "--json", PATH=path, HANDED_IN=str(handed_in), SBATCH_PARTITION="gpu")
    assert (done.returncode, done.stderr) == (0, "")
    result = json.loads(done.stdout)
    assert result["said"] == "Submitted batch job 7"
    assert result["text"] == f"#!/bin/bash\n{handed_in.read_text()}"
    with pytest.raises(UserError, match=r"--as torchrun: is handed in to nobody; must be one of sbatch, k8s"):
        check_hand_in("torchrun")


def test_the_command_line_prints_or_writes_and_overwrites_nothing(tmp_path: Path) -> None:
    out, asked = tmp_path / "run.sh", ["launch", str(QUICKSTART), "-j", "2x4", "--as", "sbatch", "--run-dir", "runs/a"]
    printed = ask(*asked)
    assert printed.returncode == 0
    assert printed.stdout.startswith("#!/bin/bash\n")
    written = ask(*asked, "--out", str(out), "--json")
    assert written.returncode == 0
    assert json.loads(written.stdout)["text"] == out.read_text() == printed.stdout
    out.write_text("mine")
    refused = ask(*asked, "--out", str(out))
    assert (refused.returncode, refused.stdout) == (2, "")
    assert (
        refused.stderr
        == f"infnet-rec: fault: --out {out}: is there already and would be overwritten; name a new file, or move it\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["run.sh"]
    assert out.read_text() == "mine"
    with pytest.raises(UserError, match=r"cannot be written \(no such file or directory\)"):
        write_script("", tmp_path / "nowhere" / "run.sh")


@pytest.mark.parametrize(
    ("form", "size", "settings", "words"),
    [
        ("sbach", "1x2", [], r"--as sbach: must be one of torchrun, sbatch, k8s \(did you mean 'sbatch'\?\)"),
        ("sbatch", "2", [], "-j 2: must be NODESxRANKS"),
        ("sbatch", "0x2", [], "-j 0x2: must be"),
        ("sbatch", "0:2x2", [], "-j 0:2x2: must be"),
        ("sbatch", "3:2x2", [], "-j 3:2x2: .* swap them"),
        ("sbatch", "3x1", [], "global_batch_size = 512: does not divide by 3 ranks"),
        ("sbatch", "2:4x2", [], "by the 6 ranks of 3 nodes, .* a multiple of 24"),
        ("sbatch", "2x2", ["gpu=2"], r"there is no 'gpu' \(did you mean 'gpus'\?\)"),
        ("sbatch", "2x2", ["gpus=1"], "2 ranks need a GPU each"),
        ("sbatch", "2x2", ["gpus=two"], "gpus=two: must be a whole number from 0 to 1024"),
        ("sbatch", "2x2", ["port=70000"], "from 1 to 65535"),
        ("sbatch", "2x2", ["gpus"], "must be KEY=VALUE"),
        ("sbatch", "2x2", ["cpus=2", "cpus=3"], "cpus was given before"),
        ("sbatch", "2x2", ["name=My_Run"], "small letters"),
        ("sbatch", "2x2", ["image=a"], "starts no container"),
        ("sbatch", "2x2", ["user=1000"], "--with user=1000: --as sbatch starts no container"),
        ("k8s", "2x2", ["image=a", "user=0"], "user=0: must be a whole number from 1"),
        ("k8s", "2x2", [], "image: is missing"),
        ("k8s", "2x2", ["image=a", "mount=type=bind,src=/a"], "mount type=bind,src=/a: must be"),
        ("k8s", "2x2", ["image=a", "mount=nonsense"], "mount nonsense: must be"),
    ],
)
def test_what_is_wrong_is_named(form: str, size: str, settings: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        rendered(form, size, *settings)


def test_a_configuration_that_is_missing_or_wrong_starts_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.toml"):
        rendered("sbatch", "1x2", config=tmp_path / "nowhere.toml")
    with pytest.raises(UserError, match="widht"):
        write_launch(QUICKSTART, ["model.widht=3"], "1x2", "sbatch", Path("r"), [])


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (
            "sharding.plan='plan.json'",
            r"sharding.plan = 'plan.json': is for one number of ranks, .*; ask for -j 2x8, or",
        ),
        (
            "model.tables.a={kind='managed', rows=16, interval_steps=1}",
            r"model.tables.a: is managed, .* ask for -j 2x8",
        ),
    ],
)
def test_what_needs_one_number_of_ranks_is_not_started_on_another(override: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        write_launch(QUICKSTART, [override], "1:2x8", "sbatch", Path("r"), [])
    write_launch(QUICKSTART, [override], "2x8", "sbatch", Path("r"), [])


def test_sizes_are_read_in_one_place() -> None:
    assert parse_size("4x8") == Size(4, 4, 8)
    assert parse_size("1:4x8") == Size(1, 4, 8)
    assert parse_size("2:2x8") == Size(2, 2, 8)
    with pytest.raises(UserError, match="a plan is for one number of nodes; ask for 4x8"):
        parse_cluster("1:4x8", load_hardware("h100"))
