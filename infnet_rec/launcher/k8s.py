"""A manifest for kubectl without any operator: a Job whose pods have numbers, and a Service that gives them names.

Kubernetes 1.31 or later where nodes may come and go (successPolicy), 1.26 otherwise.
"""

from typing import Any

import yaml
from torchx.specs import BindMount, VolumeMount, parse_mounts

from infnet_rec.errors import TRY_AGAIN, UserError
from infnet_rec.launcher.job import Launch, Meeting, agent, folded

# A pod that is evicted is told, and has so long to save.
GRACE_S = 120
# Failures for other reasons than eviction and a signal. Kubernetes counts pods, and with one all of them fail.
MAX_FAILURES = 3
# What a user without an entry in the image's list of users lacks.
HOMELESS = {"HOME": "/tmp", "USER": "infnet"}
# What pods call their network; NCCL and gloo take the wrong one where a container has several.
INTERFACE = {"NCCL_SOCKET_IFNAME": "eth0", "GLOO_SOCKET_IFNAME": "eth0"}

Manifest = dict[str, Any]


def as_k8s(launch: Launch) -> str:
    """YAML of a Service and a Job, for `kubectl apply`.

    Raises:
        UserError: no image, or a mount that cannot be read.
    """
    if not launch.image:
        raise UserError(
            "image: is missing; --as k8s starts containers: give --with image=NAME that has this project installed"
        )
    head = f"{launch.name}-0.{launch.name}"
    documents = [_service(launch), _job(launch, head)]
    return "\n".join(_comment(launch)) + "\n" + yaml.dump_all(documents, Dumper=_Readable, sort_keys=False)


def _comment(launch: Launch) -> list[str]:
    name = launch.name
    newest = (
        f"kubectl get pods -l app={name} --sort-by=.metadata.creationTimestamp -o name | grep /{name}-0- | tail -n 1"
    )
    lines = [
        f"# {name}: {launch.size.words}. Hand it in with",
        "#     kubectl apply -f FILE",
        "# follow the first pod, which speaks for all, with",
        f"#     kubectl logs -f $({newest})",
        "# and start it again with the line below, as a Job that has ended is not started by apply; the run goes on.",
        "#     kubectl replace --force -f FILE",
    ]
    if launch.size.max_nodes > 1 and any("type=volume" in mount for mount in launch.mounts):
        lines.append("# The claim has to be ReadWriteMany: the pods of all nodes write to it.")
    return lines


class _Readable(yaml.SafeDumper):
    """Leaves a text of several lines in its lines."""

    def represent_scalar(self, tag: str, value: Any, style: str | None = None) -> yaml.ScalarNode:
        lines = isinstance(value, str) and "\n" in value
        return super().represent_scalar(tag, value, style="|" if lines else style)


def _service(launch: Launch) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": launch.name},
        # Headless. The first pod has a name before it is ready, as the others wait for it.
        "spec": {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": {"app": launch.name}},
    }


def _job(launch: Launch, head: str) -> Manifest:
    size = launch.size
    spec: Manifest = {
        "completions": size.max_nodes,
        "parallelism": size.max_nodes,
        "completionMode": "Indexed",
        "backoffLimit": MAX_FAILURES * size.max_nodes,
        # A fault stays one. The others cost no try: a pod that stopped on a signal saved its work, one that was
        # evicted is not at fault.
        "podFailurePolicy": {
            "rules": [
                # Kubernetes 1.26 and 1.27 want conditions in every rule, and none is as good as any.
                {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [2, 3]}, "onPodConditions": []},
                {"action": "Ignore", "onExitCodes": {"operator": "In", "values": [TRY_AGAIN]}, "onPodConditions": []},
                {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            ]
        },
    }
    if size.is_elastic:
        # The run is over when the first pod is, and those that came too late are not waited for.
        spec["successPolicy"] = {"rules": [{"succeededIndexes": "0"}]}
    pod = {"subdomain": launch.name, "restartPolicy": "Never", "terminationGracePeriodSeconds": GRACE_S}
    pod["securityContext"], security = _security(launch)
    volumes, mounts = _volumes(launch)
    container = {
        "name": "agent",
        "image": launch.image,
        # The shell becomes torchrun, which then receives the signals.
        "command": ["bash", "-c", _command(launch, head)],
        "env": [{"name": name, "value": value} for name, value in _variables(launch).items()],
        "resources": _resources(launch),
        "securityContext": security,
        "volumeMounts": mounts,
    }
    spec["template"] = {
        "metadata": {"labels": {"app": launch.name}},
        "spec": {**pod, "containers": [container], "volumes": volumes},
    }
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": launch.name}, "spec": spec}


def _security(launch: Launch) -> tuple[Manifest, Manifest]:
    """Of the pod and of its container: what the Pod Security Standard "restricted" wants, where a user is named."""
    pod: Manifest = {"seccompProfile": {"type": "RuntimeDefault"}}
    container: Manifest = {"allowPrivilegeEscalation": False}
    if launch.user:
        ids = {"runAsNonRoot": True, "runAsUser": launch.user, "runAsGroup": launch.user, "fsGroup": launch.user}
        # A claim with millions of files is not gone through at every start.
        pod = {**ids, "fsGroupChangePolicy": "OnRootMismatch", **pod}
        container["capabilities"] = {"drop": ["ALL"]}
    return pod, container


def _command(launch: Launch, head: str) -> str:
    # Kubernetes gives every pod of the Job its number.
    meeting = Meeting(f"{head}:{launch.port}", launch.name, is_first="$((JOB_COMPLETION_INDEX == 0))")
    return "\n".join(folded("exec", agent(launch, launch.python, meeting)))


def _variables(launch: Launch) -> dict[str, str]:
    threads = max(1, launch.node.cpus // launch.size.ranks_per_node)
    return {"OMP_NUM_THREADS": str(threads), **INTERFACE, **(HOMELESS if launch.user else {}), **launch.variables}


def _resources(launch: Launch) -> Manifest:
    node = launch.node
    limits: Manifest = {"nvidia.com/gpu": node.gpus} if node.gpus else {}
    limits |= {"cpu": str(node.cpus)} if node.cpus else {}
    limits |= {"memory": f"{node.memory_gib}Gi"} if node.memory_gib else {}
    return {"limits": limits} if limits else {}


def _volumes(launch: Launch) -> tuple[list[Manifest], list[Manifest]]:
    # NCCL and the readers share memory, and a container has 64 MiB of it by default.
    volumes: list[Manifest] = [{"name": "shm", "emptyDir": {"medium": "Memory"}}]
    mounts: list[Manifest] = [{"name": "shm", "mountPath": "/dev/shm"}]
    for number, mount in enumerate(parsed_mounts(launch.mounts)):
        name = f"mount-{number}"
        source = (
            {"hostPath": {"path": mount.src_path}}
            if isinstance(mount, BindMount)
            else {"persistentVolumeClaim": {"claimName": mount.src}}
        )
        volumes.append({"name": name, **source})
        mounts.append({"name": name, "mountPath": mount.dst_path, **({"readOnly": True} if mount.read_only else {})})
    return volumes, mounts


def parsed_mounts(mounts: tuple[str, ...]) -> list[BindMount | VolumeMount]:
    """Reads mounts in torchx's form, so that one spelling goes everywhere.

    Raises:
        UserError: a mount that is none, or is a device.
    """
    found: list[BindMount | VolumeMount] = []
    for mount in mounts:
        rule = "must be type=bind,src=FOLDER,dst=FOLDER or type=volume,src=CLAIM,dst=FOLDER; ',readonly' may follow"
        try:
            read = parse_mounts(mount.split(","))
        except (KeyError, ValueError, TypeError) as error:
            raise UserError(f"mount {mount}: {rule}") from error
        for part in read:
            if not isinstance(part, BindMount | VolumeMount):
                raise UserError(f"mount {mount}: {rule}")
            found.append(part)
    return found
