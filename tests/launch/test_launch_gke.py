"""JobSets: what their schema says, the rules that it does not, and their life before an imitation of kubectl."""

import copy
import dataclasses
import json
import math
import os
import pathlib
import re
import sys

import pytest
import yaml

from chinchilla_jax.launch.backend import verdict
from chinchilla_jax.launch.command import LaunchError, Tools
from chinchilla_jax.launch.gke import Gke, broken_rules, check, dump
from chinchilla_jax.preflight.slices import parse_slice
from chinchilla_jax.study.folder import run_folder

SCHEMA = json.loads(pathlib.Path(__file__).with_name("jobset_crd.json").read_text())["schema"]
BACKEND = Gke("registry/image:1", "team", "queue", spot=True, service_account="worker", volume="claim:/shared")
SLICES = ["v5e-1", "v5e-4", "v5e-8", "v5e-16", "2xv5e-16", "v4-8", "v4-16", "v5p:4x4x16", "v6e-8", "2xv6e-256"]
TYPES = {"object": dict, "array": list, "string": str, "integer": int, "boolean": bool, "number": (int, float)}


def wrong(schema, value, at=""):
    """Where a value is not what an OpenAPI schema of Kubernetes says, unknown fields included."""
    if schema.get("x-kubernetes-int-or-string"):
        kind = (int, str)
    else:
        kind = TYPES[schema["type"]] if "type" in schema else object
    if not isinstance(value, kind) or isinstance(value, bool) and schema.get("type") == "integer":
        return [f"{at}: {value!r} is no {schema.get('type')}"]
    found = [f"{at}: {value!r} is none of {schema['enum']}"] if value not in schema.get("enum", [value]) else []
    if isinstance(value, dict):
        known, others = schema.get("properties", {}), schema.get("additionalProperties")
        found += [f"{at}: no {name}" for name in schema.get("required", ()) if name not in value]
        for name, item in value.items():
            if name in known:
                found += wrong(known[name], item, f"{at}.{name}")
            elif isinstance(others, dict):
                found += wrong(others, item, f"{at}.{name}")
            elif known:
                found.append(f"{at}: unknown {name}")
    if isinstance(value, list):
        found += [error for i, item in enumerate(value) for error in wrong(schema["items"], item, f"{at}[{i}]")]
    return found


def spec_of(job, name="v5e-16", backend=BACKEND):
    return backend.spec(dataclasses.replace(job, slice=parse_slice(name)), 0)


def parts(spec):
    """Its JobSet spec, its Job's, its pod's and its container."""
    job = spec["spec"]["replicatedJobs"][0]["template"]["spec"]
    return spec["spec"], job, job["template"]["spec"], job["template"]["spec"]["containers"][0]


@pytest.mark.parametrize("backend", [BACKEND, Gke("image")])
@pytest.mark.parametrize("name", SLICES)
def test_specs_are_what_the_api_takes(job, name, backend):
    spec = spec_of(job, name, backend)
    assert wrong(SCHEMA, spec) == [] and broken_rules(spec) == []
    assert yaml.safe_load(dump(spec)) == spec and not re.search(r"[&*]id\d", dump(spec))
    _, one, pod, container = parts(spec)
    slice_ = parse_slice(name)
    chips = spec["spec"]["replicatedJobs"][0]["replicas"] * one["parallelism"]
    assert chips * container["resources"]["limits"]["google.com/tpu"] == slice_.chips
    grid = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    assert math.prod(map(int, grid.split("x"))) * slice_.count == slice_.chips


@pytest.mark.parametrize(("change", "words"), [
    (lambda s, j, p, c: p.update(restartPolicey="Never"), "unknown restartPolicey"),
    (lambda s, j, p, c: j.update(parallelism="4"), "'4' is no integer"),
    (lambda s, j, p, c: s["failurePolicy"]["rules"][0].update(action="Restart"), "is none of"),
    (lambda s, j, p, c: s["failurePolicy"]["rules"][0].pop("name"), "no name"),
    (lambda s, j, p, c: p.update(terminationGracePeriodSeconds="30"), "'30' is no integer"),
])  # fmt: skip
def test_the_schema_catches_what_it_should(job, change, words):
    spec = copy.deepcopy(spec_of(job))
    change(*parts(spec))
    assert any(words in error for error in wrong(SCHEMA, spec))


@pytest.mark.parametrize(("change", "words"), [
    (lambda s, j, p, c: p.update(restartPolicy="OnFailure"), "restartPolicy Never"),
    (lambda s, j, p, c: c.update(name="other"), "container 'train' that is not there"),
    (lambda s, j, p, c: j.update(completions=3), "parallelism and completions"),
    (lambda s, j, p, c: j.update(parallelism=8, completions=8), "not the topology 4x4"),
    (lambda s, j, p, c: s["failurePolicy"]["rules"][1].update(name="disrupted"), "each another"),
    (lambda s, j, p, c: s["replicatedJobs"][0].update(name="worker" * 9), "at most 63"),
    (lambda s, j, p, c: j["podFailurePolicy"]["rules"][1]["onExitCodes"].update(values=[42, 1]), "in order"),
])  # fmt: skip
def test_rules_that_no_schema_says_are_checked(job, change, words):
    spec = copy.deepcopy(spec_of(job))
    change(*parts(spec))
    with pytest.raises(LaunchError, match=words):
        check(spec)
    other = copy.deepcopy(spec_of(job))
    other["metadata"]["annotations"]["kueue.x-k8s.io/queue-name"] = "queue"
    assert any("is a label" in rule for rule in broken_rules(other))


@pytest.mark.parametrize("name", SLICES)
def test_the_inner_job_is_a_job(job, name):
    validate = pytest.importorskip("kubernetes_validate").validate
    spec = spec_of(job, name)
    inner = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}, "spec": parts(spec)[1]}
    validate(inner, "1.32", strict=True)
    parts(spec)[2]["restartPolicey"] = "Never"
    with pytest.raises(Exception, match="restartPolicey"):
        validate(inner, "1.32", strict=True)


def outcome(spec, code):
    """What the cluster does when a pod ends with this code, by the rules of the API: `again` or `failed`."""
    top, job, _, _ = parts(spec)
    message = "a container failed"
    for index, rule in enumerate(job["podFailurePolicy"]["rules"]):
        codes = rule.get("onExitCodes")
        if codes and (code in codes["values"]) == (codes["operator"] == "In"):
            message = (
                f"Container train for pod team/p failed with exit code {code} matching FailJob rule at index {index}"
            )
            break
    for rule in top["failurePolicy"]["rules"]:
        if any(re.search(pattern, message) for pattern in rule["onJobFailureMessagePatterns"]):
            return {"FailJobSet": "failed", "RestartJobSetAndIgnoreMaxRestarts": "again"}[rule["action"]]
    return "again"


def test_exit_codes_start_again_where_every_back_end_does(job):
    spec = spec_of(job)
    assert [outcome(spec, code) for code in range(1, 256)] == [verdict([code]) for code in range(1, 256)]
    assert outcome(spec, 42) == "again" and outcome(spec, 1) == outcome(spec, 2) == "failed"


def test_pods_find_each_other_or_know_that_they_are_alone(job):
    alone, together = (parts(spec_of(job, name))[3] for name in ("v5e-4", "v5e-16"))
    variables = [{item["name"]: item["value"] for item in container["env"]} for container in (alone, together)]
    assert variables[0]["JAX_NUM_PROCESSES"] == "1" and "JAX_NUM_PROCESSES" not in variables[1]
    assert together["command"][:4] == ["python", "-m", "chinchilla_jax", "work"]  # PID 1 is the one that saves


class Cluster:
    def __init__(self, folder):
        self.folder = folder

    def plan(self, **plan):
        (self.folder / "plan.json").write_text(json.dumps(plan))

    def calls(self, verb):
        lines = (self.folder / "calls.jsonl").read_text().splitlines()
        return [call for call in map(json.loads, lines) if call[0] == verb]

    def jobsets(self):
        return sorted(path.stem for path in self.folder.glob("*.jobset"))


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    (folder := tmp_path / "cluster").mkdir()
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("FAKE_KUBECTL", str(folder))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    kubectl = tmp_path / "bin" / "kubectl"
    kubectl.write_text(f'#!/bin/sh\nexec {sys.executable} {pathlib.Path(__file__).with_name("fake_kubectl.py")} "$@"\n')
    kubectl.chmod(0o755)
    return Cluster(folder)


def condition(kind, message=""):
    return {"type": kind, "status": "True", "message": message, "lastTransitionTime": "2026-01-01T00:00:00Z"}


def at_work(restarts=0):
    return {"replicatedJobsStatus": [{"name": "w", "ready": 1}], "restarts": restarts}


def test_jobsets_wait_train_and_complete(cluster, job, tools, said):
    made = {str(run_folder(job.folder, run.name) / "result.json"): {"loss": 1.0} for run in job.runs()}
    done = {"conditions": [condition("Completed")], "finish": made}
    waits = {"conditions": [condition("Suspended")]}
    cluster.plan(statuses={name: [waits, at_work(), at_work(1), done] for name in ("cj-test-0", "cj-test-1")})
    BACKEND.launch(job, tools)
    assert not job.unfinished() and len(cluster.calls("apply")) == 2
    states = "; ".join(said)
    assert states.index("0: applied") < states.index("0: suspended") < states.index("0: running")


def test_a_bug_ends_the_worker_and_its_message_is_told(cluster, job, tools):
    message = "Container train failed with exit code 1 matching FailJob rule at index 1"
    failed = {"conditions": [condition("Failed", message)]}
    cluster.plan(statuses={name: [at_work(), failed] for name in ("cj-test-0", "cj-test-1")})
    with pytest.raises(LaunchError, match="JobSet cj-test-0 failed: Container train failed with exit code 1"):
        BACKEND.launch(job, tools)


def test_what_failed_before_is_made_anew(cluster, job, tools):
    made = {str(run_folder(job.folder, run.name) / "result.json"): {"loss": 1.0} for run in job.runs()}
    one = dataclasses.replace(job, slices=1)
    old = {"spec": BACKEND.spec(one, 0), "asked": 0}
    (cluster.folder / "cj-test-0.jobset").write_text(json.dumps(old))
    cluster.plan(statuses={"cj-test-0": [{"conditions": [condition("Failed", "once")]}]})
    apply = Tools(tools.echo, sleep=lambda _: cluster.plan(statuses={"cj-test-0": [at_work() | {"finish": made}]}))
    BACKEND.launch(one, apply)
    assert len(cluster.calls("apply")) == 1 and not one.unfinished()


def test_restarts_without_a_checkpoint_are_counted(cluster, job, tools):
    one = dataclasses.replace(job, slices=1)
    cluster.plan(statuses={"cj-test-0": [at_work(restarts) for restarts in range(9)]})
    with pytest.raises(LaunchError, match="started 3 times without a new checkpoint"):
        BACKEND.launch(one, tools)
    assert cluster.jobsets() == []


def test_a_refusal_is_told_in_the_clusters_words(cluster, job, tools):
    cluster.plan(refuse='admission webhook "vjobset.kb.io" denied the request: name too long')
    with pytest.raises(LaunchError, match="denied the request: name too long"):
        BACKEND.launch(job, tools)


def test_status_says_what_kueue_waits_for(cluster, job, tools, said):
    waiting = {
        "metadata": {"name": "jobset-cj-test-0-1a2b", "ownerReferences": [{"name": "cj-test-0"}]},
        "status": {"conditions": [condition("QuotaReserved", "Quota reserved in ClusterQueue main")]},
    }
    cluster.plan(workloads=[waiting], statuses={"cj-test-0": [at_work(2)]})
    (cluster.folder / "cj-test-0.jobset").write_text(json.dumps({"spec": BACKEND.spec(job, 0), "asked": 0}))
    BACKEND.status(job, tools)
    assert said[0] == "cj-test-0: running, 2 restarts"
    assert said[1] == (
        "jobset-cj-test-0-1a2b: QuotaReserved since 2026-01-01T00:00:00Z: Quota reserved in ClusterQueue main"
    )
    BACKEND.stop(job, tools)
    assert cluster.jobsets() == []
