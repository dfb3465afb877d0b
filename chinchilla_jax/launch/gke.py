"""Training on Google Kubernetes Engine: a JobSet for each worker, queued by Kueue where a queue is named.

A pod is a host of the slice, and all pods of a worker are one training process. What starts again is decided by the
cluster: a pod that is moved or preempted, exit code 42, or a machine's death make the JobSet start again; any other
code ends it. The launcher counts starts without a checkpoint, which Kubernetes cannot. Variables by which hosts
and slices find each other are put there by GKE's webhook.

Specs are plain values, checked by `check` for what no schema says (the rules of JobSet's webhook,
kubernetes-sigs/jobset v0.12, pkg/webhooks/jobset_webhook.go), and written as YAML.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from typing import Any

from chinchilla_jax.base.errors import PREEMPTED
from chinchilla_jax.launch import gang
from chinchilla_jax.launch.backend import Headway, Job, hosts_of
from chinchilla_jax.launch.command import LaunchError, Tools

_ACCELERATORS = {
    "v4": "tpu-v4-podslice",
    "v5e": "tpu-v5-lite-podslice",
    "v5p": "tpu-v5p-slice",
    "v6e": "tpu-v6e-slice",
}
_LABEL = "chinchilla-jax/job"
_QUEUE = "kueue.x-k8s.io/queue-name"
CONTAINER, REPLICATED = "train", "w"
MOST_RESTARTS = 50  # that are no disruption, whatever the launcher sees
AGAIN = (PREEMPTED, *range(126, 256))  # exit codes that start again, as in `backend.verdict`
POLL_SECONDS = 60.0


@dataclasses.dataclass(frozen=True)
class Gke:
    """The cluster is that of kubectl's current context.

    `volume` is CLAIM:PATH, a persistent volume that all pods mount, where the study is not in a bucket.
    """

    image: str
    namespace: str = "default"
    queue: str | None = None
    spot: bool = False
    service_account: str | None = None
    volume: str | None = None
    poll: float = POLL_SECONDS

    def __post_init__(self) -> None:
        if not self.image:
            raise LaunchError("--image=IMAGE is missing: what pods run; docker build -f launch/Dockerfile makes one")
        if self.volume and not re.fullmatch(r"[a-z0-9.-]+:/.*", self.volume):
            raise LaunchError(f"--volume={self.volume}: write CLAIM:/PATH, a persistent volume claim and where it goes")

    def launch(self, job: Job, tools: Tools) -> None:
        """Applies a JobSet for each worker and watches them; a launcher that ends leaves them at work."""
        job.needs_shared_study()
        specs = [self.spec(job, worker) for worker in range(job.slices)]
        for spec in specs:
            check(spec)
        members = [_Member(self, job, worker, spec, tools) for worker, spec in enumerate(specs)]
        spent = job.spent()

        def look() -> dict[str, Any]:
            return self.find(job, tools, [member for member in members if member.applied])

        gang.watch(job, members, look, spent, tools, self.poll)

    def status(self, job: Job, tools: Tools) -> None:
        """Prints the JobSets, how often they started again, and of Kueue what they wait for."""
        for name, found in sorted(self.find(job, tools, []).items()):
            status = found.get("status", {})
            ready = sum(one.get("ready", 0) for one in status.get("replicatedJobsStatus", ()))
            said = "; ".join(_conditions(status)) or ("running" if ready else "no pods are ready")
            tools.echo(f"{name}: {said}, {status.get('restarts', 0)} restarts")
        if not self.queue:
            return
        done = tools.call(self.kubectl("get", "workloads.kueue.x-k8s.io", "-o", "json"), answer="{}", reads=True)
        for item in json.loads(done.out).get("items", ()) if done.ok else ():
            if any(owner["name"].startswith(f"{job.name}-") for owner in item["metadata"].get("ownerReferences", ())):
                tools.echo(f"{item['metadata']['name']}: {'; '.join(_conditions(item.get('status', {})))}")

    def stop(self, job: Job, tools: Tools) -> None:
        """Deletes the JobSets; their pods get SIGTERM and save."""
        done = tools.call(self.kubectl("delete", "jobsets", f"--selector={_LABEL}={job.name}"))
        if not done.ok:
            raise LaunchError(f"kubectl: {done.why()}")
        tools.echo(done.out.strip() or f"{job.name}: deleted")

    def kubectl(self, *words: str) -> list[str]:
        """A command in the job's namespace."""
        return ["kubectl", f"--namespace={self.namespace}", *words]

    def find(self, job: Job, tools: Tools, assumed: list[_Member]) -> dict[str, Any]:
        """The JobSets of the job by name; a dry run finds those `assumed`, at work.

        Raises:
          LaunchError: kubectl could not be asked.
        """
        at_work = {"replicatedJobsStatus": [{"name": REPLICATED, "ready": job.slices}]}
        items = [{"metadata": {"name": member.name}, "status": at_work} for member in assumed]
        words = self.kubectl("get", "jobsets", f"--selector={_LABEL}={job.name}", "-o", "json")
        done = tools.call(words, answer=json.dumps({"items": items}), reads=True)
        if not done.ok:
            raise LaunchError(f"kubectl: {done.why()}")
        return {item["metadata"]["name"]: item for item in json.loads(done.out).get("items", ())}

    # Specs.

    def spec(self, job: Job, worker: int) -> dict[str, Any]:
        """The JobSet of a worker: a Job for each slice of it, a pod for each host."""
        slice_ = job.needs_one_slice
        labels = {_LABEL: job.name, **dict(job.labels)}
        rules = [
            _failure_rule("disrupted", "RestartJobSetAndIgnoreMaxRestarts", 0),
            _failure_rule("failed", "FailJobSet", 1),
        ]
        annotations = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
        return {
            "apiVersion": "jobset.x-k8s.io/v1alpha2",
            "kind": "JobSet",
            "metadata": {
                "name": f"{job.name}-{worker}",
                "labels": labels | ({_QUEUE: self.queue} if self.queue else {}),
                "annotations": annotations,
            },
            "spec": {
                # Chips are held by pods that are dying, so the new ones wait until all of them are gone.
                "failurePolicy": {"maxRestarts": MOST_RESTARTS, "restartStrategy": "BlockingRecreate", "rules": rules},
                "replicatedJobs": [
                    {"name": REPLICATED, "replicas": slice_.count, "template": {"spec": self._job(job, worker)}}
                ],
            },
        }

    def _job(self, job: Job, worker: int) -> dict[str, Any]:
        hosts = hosts_of(job.needs_one_slice, small_on_one=False)
        machine_died = {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
        codes = {"containerName": CONTAINER, "operator": "NotIn", "values": list(AGAIN)}
        return {
            "parallelism": hosts,
            "completions": hosts,
            "completionMode": "Indexed",
            "backoffLimit": 0,
            "podFailurePolicy": {"rules": [machine_died, {"action": "FailJob", "onExitCodes": codes}]},
            "template": {"metadata": {"labels": {_LABEL: job.name}}, "spec": self._pod(job, worker, hosts)},
        }

    def _pod(self, job: Job, worker: int, hosts: int) -> dict[str, Any]:
        slice_ = job.needs_one_slice
        accelerator = _ACCELERATORS.get(slice_.generation)
        if accelerator is None:
            raise LaunchError(f"--slice={slice_.name}: no TPU of Kubernetes Engine that is known here")
        chips = {"google.com/tpu": min(4, math.prod(slice_.grid))}
        variables = {"PYTHONUNBUFFERED": "1", "JAX_COORDINATOR_PORT": "8476"}
        if hosts * slice_.count == 1:  # nobody to find
            variables["JAX_NUM_PROCESSES"] = "1"
        if slice_.count > 1:
            variables["LIBTPU_INIT_ARGS"] = "--megascale_abort_on_hangs=true"
        container = {
            "name": CONTAINER,
            "image": self.image,
            "command": job.work(worker),  # no shell in front: the process itself gets SIGTERM
            "env": [{"name": name, "value": value} for name, value in variables.items()],
            "ports": [{"containerPort": port} for port in (8471, 8476, 8080)],
            "resources": {"requests": chips, "limits": chips},
            "securityContext": {"privileged": True},
        }
        pod: dict[str, Any] = {
            "restartPolicy": "Never",  # what a policy about failures of pods needs
            "terminationGracePeriodSeconds": gang.SAVE_SECONDS,
            "nodeSelector": {
                "cloud.google.com/gke-tpu-accelerator": accelerator,
                "cloud.google.com/gke-tpu-topology": "x".join(map(str, slice_.grid)),
            },
            "tolerations": [{"key": "google.com/tpu", "operator": "Exists", "effect": "NoSchedule"}],
            "containers": [container],
        }
        if self.spot:
            spot = "cloud.google.com/gke-spot"
            pod["nodeSelector"][spot] = "true"
            pod["tolerations"].append({"key": spot, "operator": "Equal", "value": "true", "effect": "NoSchedule"})
        if self.service_account:
            pod["serviceAccountName"] = self.service_account
        if self.volume:
            claim, _, path = self.volume.partition(":")
            container["volumeMounts"] = [{"name": "shared", "mountPath": path}]
            pod["volumes"] = [{"name": "shared", "persistentVolumeClaim": {"claimName": claim}}]
        return pod


def _failure_rule(name: str, action: str, index: int) -> dict[str, Any]:
    """What the JobSet does when a Job failed by the rule `index` of its podFailurePolicy. Without a match it starts
    again, and that counts.
    """
    patterns = [f"rule at index {index}"]
    return {
        "name": name,
        "action": action,
        "onJobFailureReasons": ["PodFailurePolicy"],
        "onJobFailureMessagePatterns": patterns,
    }


def dump(*specs: Mapping[str, Any]) -> str:
    """Specs as YAML, without aliases."""
    import yaml

    class Plain(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

    style = {"sort_keys": False, "default_flow_style": None, "width": 118}
    return yaml.dump_all([dict(spec) for spec in specs], Dumper=Plain, **style)


def check(spec: Mapping[str, Any]) -> None:
    """What the API server and JobSet's webhook demand beyond the schema.

    Raises:
      LaunchError: the first rule that is broken.
    """
    for broken in broken_rules(spec):
        raise LaunchError(f"the spec of {spec['metadata']['name']} would be refused: {broken}")


def broken_rules(spec: Mapping[str, Any]) -> list[str]:
    """Every such rule that the JobSet breaks, in words."""
    broken = []
    name, rules = spec["metadata"]["name"], spec["spec"].get("failurePolicy", {}).get("rules", [])
    names = [rule.get("name", "") for rule in rules]
    if len(set(names)) < len(names) or not all(names):
        broken.append("rules of failurePolicy need names, each another")
    if _QUEUE in spec["metadata"].get("annotations", {}):
        broken.append(f"{_QUEUE} is a label, no annotation")
    for key, value in spec["metadata"].get("labels", {}).items():
        if not re.fullmatch(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?", value):
            broken.append(f"label {key}={value}: at most 63 letters, digits, -, _ and .")
    for replicated in spec["spec"]["replicatedJobs"]:
        job = replicated["template"]["spec"]
        pod = job["template"]["spec"]
        last = f"{name}-{replicated['name']}-{replicated['replicas'] - 1}-{job['parallelism'] - 1}-abcde"
        if len(last) > 63 or not re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", last):
            broken.append(f"the name of a pod, {last}, must be at most 63 of a-z, 0-9 and -, a letter first")
        broken += _broken_job_rules(job, pod)
    return broken


def _broken_job_rules(job: Mapping[str, Any], pod: Mapping[str, Any]) -> list[str]:
    broken = []
    containers = {container["name"] for container in pod["containers"]}
    if "podFailurePolicy" in job and pod.get("restartPolicy") != "Never":
        broken.append("podFailurePolicy needs restartPolicy Never")
    for rule in job.get("podFailurePolicy", {}).get("rules", ()):
        codes = rule.get("onExitCodes", {})
        if codes and codes.get("containerName", CONTAINER) not in containers:
            broken.append(f"podFailurePolicy names a container {codes['containerName']!r} that is not there")
        if (
            codes.get("operator") == "In"
            and 0 in codes["values"]
            or codes.get("values", []) != sorted(set(codes.get("values", [])))
        ):
            broken.append("exit codes of podFailurePolicy must be in order, each once, and none of `In` 0")
    if job["parallelism"] != job.get("completions"):
        broken.append("parallelism and completions must be equal: every host of the slice")
    grid = pod.get("nodeSelector", {}).get("cloud.google.com/gke-tpu-topology", "")
    chips = pod["containers"][0].get("resources", {}).get("limits", {}).get("google.com/tpu", 0)
    if grid and math.prod(map(int, grid.split("x"))) != chips * job["parallelism"]:
        broken.append(f"{job['parallelism']} pods of {chips} chips are not the topology {grid}")
    return broken


def _conditions(status: Mapping[str, Any]) -> list[str]:
    """Conditions that hold, with their messages and since when."""
    return [
        f"{one['type']} since {one.get('lastTransitionTime', '?')}: {one.get('message', '')}".rstrip(": ")
        for one in status.get("conditions", ())
        if one.get("status") == "True"
    ]


class _Member:
    """A worker's JobSet. A `gang.Member`."""

    def __init__(self, backend: Gke, job: Job, worker: int, spec: Mapping[str, Any], tools: Tools):
        self.backend, self.job, self.worker, self.spec, self.tools = backend, job, worker, spec, tools
        self.name = spec["metadata"]["name"]
        self.headway = Headway(job, worker)
        self.over, self.working, self.cause, self.state, self.chips = False, False, "", "not applied", 0
        self.taken = 0
        self.applied = False
        self._restarts = 0

    def tick(self, seen: Mapping[str, Any]) -> None:
        """Applies the JobSet, or looks how it is."""
        status = seen.get(self.name, {}).get("status", {})
        held = {one["type"] for one in status.get("conditions", ()) if one.get("status") == "True"}
        ready = sum(one.get("ready", 0) for one in status.get("replicatedJobsStatus", ()))
        self.working, self.chips = ready > 0, self.job.needs_one_slice.chips if ready else 0
        if self.name not in seen:
            self._apply()
        elif "Completed" in held:
            self.over, self.state = True, "done"
        elif "Failed" in held and self.applied:
            message = next(one.get("message", "") for one in status["conditions"] if one["type"] == "Failed")
            self.over, self.cause, self.state = True, f"JobSet {self.name} failed: {message}", "failed"
        elif "Failed" in held:  # of an earlier launch: what failed may be mended
            self._delete()
        else:
            self.state = "running" if ready else "suspended" if "Suspended" in held else "waiting for pods"
            self._count(status.get("restarts", 0))

    def _apply(self) -> None:
        done = self.tools.call(self.backend.kubectl("apply", "--filename=-"), stdin=dump(self.spec))
        if not done.ok:
            self.over, self.cause, self.state = True, done.why(), f"refused: {done.why()}"
            return
        self.applied, self.state = True, "applied"
        self.headway.start()

    def _count(self, restarts: int) -> None:
        self.applied = True
        self.headway.look()
        try:
            for _ in range(restarts - self._restarts):
                self.headway.start()
        except LaunchError as error:
            self._delete()
            self.over, self.cause = True, str(error)
        self._restarts = restarts

    def _delete(self) -> None:
        self.tools.call(self.backend.kubectl("delete", "jobset", self.name, "--ignore-not-found"))

    def release(self) -> None:
        """Deletes the JobSet; its pods get SIGTERM and save."""
        self._delete()
        self.over, self.working, self.chips = True, False, 0
