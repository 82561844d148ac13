"""The files of deploy/ say what the clusters and the command understand: their form is checked, and
what they run is run as far as it goes without a cluster."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from gptjax.cli.train import TrainOptions

DEPLOY = Path(__file__).parents[1] / "deploy"
ROOT = DEPLOY.parent


def flags_of(words: list[str]) -> set[str]:
    return {word for word in words if word.startswith("--")}


def known(words: list[str]) -> None:
    """The config is there, and the flags of `train` exist."""
    assert (ROOT / next(word for word in words if word.startswith("configs/"))).is_file()
    own = {f"--{name.replace('_', '-')}" for name in TrainOptions.__dataclass_fields__}
    assert not {flag for flag in flags_of(words) if "." not in flag} - own


@pytest.mark.parametrize("name", ["jobset-gpu.yaml", "jobset-tpu.yaml"])
def test_a_jobset_starts_as_many_processes_as_hosts_and_restarts_them_together(name):
    jobset = yaml.safe_load((DEPLOY / name).read_text())
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] > 0
    (job,) = jobset["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    assert spec["completionMode"] == "Indexed" and spec["backoffLimit"] == 0
    assert spec["parallelism"] == spec["completions"]
    pod = spec["template"]["spec"]
    assert pod["restartPolicy"] == "Never" and pod["terminationGracePeriodSeconds"] >= 120
    (container,) = pod["containers"]
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}
    words = shlex.split(" ".join([*container["command"], *container["args"]]).replace('"', ""))
    known(words)
    assert "--distributed" in words
    (devices,) = container["resources"]["limits"].values()
    fsdp = int(words[words.index("--mesh.fsdp") + 1])
    assert fsdp == devices * spec["completions"], "the mesh takes every device"
    if "gpu" in name:
        assert int(words[words.index("--num-processes") + 1]) == spec["completions"]
        host = words[words.index("--coordinator") + 1]
        meta, index = jobset["metadata"]["name"], 0
        assert host == f"{meta}-{job['name']}-{index}-0.{meta}:8476"
        assert jobset["spec"]["network"]["enableDNSHostnames"]
        assert container["ports"] == [{"containerPort": 8476}]
    else:
        sides = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")
        assert int(sides[0]) * int(sides[1]) == fsdp


def test_the_sbatch_file_asks_for_what_it_starts():
    text = (DEPLOY / "train.sbatch").read_text()
    subprocess.run(["bash", "-n", str(DEPLOY / "train.sbatch")], check=True)
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", text, re.MULTILINE))
    assert asked["ntasks-per-node"] == asked["gpus-per-node"]
    assert asked["signal"] == "B:TERM@120" and "requeue" in asked
    assert asked["open-mode"] == "append", "a job that was requeued goes on in the same log"
    known(shlex.split(text.splitlines()[1].removeprefix("# sbatch deploy/train.sbatch")))


@pytest.mark.parametrize("ended", ["by itself", "by a signal", "with an error"])
def test_a_job_is_requeued_when_it_was_asked_to_stop_and_has_saved(ended, tmp_path):
    """With stand-ins for Slurm's commands and for gptjax."""
    files = {
        "srun": '#!/bin/bash\nshift\nexec "$@"\n',
        "scontrol": f'#!/bin/bash\necho "$@" >> {tmp_path}/requeued\n',
        "gptjax": "#!/bin/bash\n"
        f'echo "$@" > {tmp_path}/args; trap "exit 0" TERM; touch {tmp_path}/began\n'
        + {"by itself": "exit 0", "with an error": "exit 7"}.get(ended, "sleep 60 & wait")
        + "\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "42"}
    job = subprocess.Popen(
        ["bash", str(DEPLOY / "train.sbatch"), "configs/quickstart.py"], env=env, cwd=tmp_path
    )
    if ended == "by a signal":
        until = time.monotonic() + 30
        while not (tmp_path / "began").exists() and time.monotonic() < until:
            time.sleep(0.02)
        job.send_signal(signal.SIGTERM)
    assert job.wait(timeout=60) == {"with an error": 7}.get(ended, 0)
    assert (tmp_path / "args").read_text() == "train configs/quickstart.py --distributed\n"
    assert (tmp_path / "requeued").exists() == (ended == "by a signal")


def test_every_file_that_an_image_copies_is_there_and_its_extras_exist():
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    for path in DEPLOY.glob("Dockerfile*"):
        text = path.read_text()
        for copied in re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE):
            assert all((ROOT / name).exists() for name in copied.split()), copied
        for extra in re.findall(r"\.\[(\w+)\]", text):
            assert extra in extras
    assert {"cuda", "tpu"} <= extras.keys(), "Dockerfile.train's BACKEND"


@pytest.mark.slow
def test_the_steps_of_the_training_image_give_a_command_that_trains(tmp_path):
    """No builder is here: the same steps in a fresh environment, for the CPU."""
    text = (DEPLOY / "Dockerfile.train").read_text()
    copied = " ".join(re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE)).split()
    for name in copied:
        subprocess.run(["cp", "-r", str(ROOT / name), str(tmp_path)], check=True)
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "env")], check=True)
    run = tmp_path / "env/bin"
    subprocess.run([run / "pip", "install", "-q", "."], cwd=tmp_path, check=True)
    (tmp_path / "text.txt").write_text("to be or not to be, that is the question. " * 60)
    entry = json.loads(re.search(r"^ENTRYPOINT (.*)$", text, re.MULTILINE)[1])
    small = "--model.width 32 --model.num-heads 2 --model.num-layers 1 --model.context 32"
    done = subprocess.run(
        [
            *(run / entry[0], "train", "configs/quickstart.py", "--data.source.path", "text.txt"),
            *("--data.tokenizer.vocab-size", "280", *small.split(), "--steps", "2"),
            *("--batch", "2", "--evaluation.every", "2", "--dir", "runs/first"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "XLA", "JAX"))},
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs/first/report.html").is_file()
