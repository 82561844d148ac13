"""`gptjax serve`: its errors, how it ends on a signal, and once the whole as a process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("uvicorn", reason="serving needs it: pip install 'gptjax[serve]'")
pytest.importorskip("httpx", reason="it drives the app: pip install 'gptjax[test]'")
import httpx
from runs import ends, wait_for
from scripted import CHAT, SECRET, Scripted, app_of

import gptjax
from gptjax.cli.main import main
from gptjax.data import Bytes, Classification, DataConfig, Records
from gptjax.generate.watermark import detect_watermark, read_watermark
from gptjax.model import ModelConfig
from gptjax.serve.listen import bound, listen, url_of
from gptjax.train.experiment import Evaluation, Experiment
from gptjax.train.loop import train
from gptjax.train.optim import AdamW, Schedule


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ([], "the first argument is missing"),
        (["none"], "none is not a directory"),
        (["none", "--host", "0.0.0.0"], "--key-file FILE"),
        (["none", "--port", "70000"], "0 to 65535"),
        (["none", "--slots", "0"], "at least 1 (--slots)"),
        (["none", "--drain", "-1"], "0 or more seconds"),
        (["none", "--key-file", "nowhere"], "--key-file nowhere can't be read"),
        (["none", "--allow-origin", "*"], "no wildcard"),
        (["none", "--slot", "2"], "--slots"),
        (["none", "--adapter", "x"], "none is not a directory"),
    ],
)
def test_what_can_not_be_served_is_one_line(flags, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = flags if "--port" in flags or not flags else [*flags, "--port", "0"]
    assert main(["serve", *told]) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ") and line.count("\n") == 1 and says in line, line


def test_a_port_in_use_is_reported_before_the_model_is_read(capsys):
    with contextlib.closing(bound("127.0.0.1", 0, has_keys=False)) as opened:
        port = str(opened.getsockname()[1])
        assert main(["serve", "none", "--port", port]) == 2
    assert f"port {port} of 127.0.0.1 is in use; choose another" in capsys.readouterr().err


def streamed(url: str, tokens: int, answers: dict) -> None:
    """Keeps the events of an answer under its number of tokens."""
    body = CHAT | {"stream": True, "max_tokens": tokens}
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=20) as answer:
        answers[tokens] = [line for line in answer.iter_lines() if line]


def ended_by_signal(engine, drain: float, signals: int = 1) -> tuple[int, float, dict]:
    """The status of a server that gets SIGTERM while it writes a short and a long answer, the
    seconds that it took to end, and the answers."""
    opened = bound("127.0.0.1", 0, has_keys=False)
    url, answers, at = url_of(opened), {}, []
    threads = [threading.Thread(target=streamed, args=(url, n, answers)) for n in (10, 200)]

    def load():
        for thread in threads:
            thread.start()
        while engine.running < 2:
            time.sleep(0.01)
        at.append(time.monotonic())
        for _ in range(signals):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.3)
        with pytest.raises(httpx.HTTPError):
            httpx.get(f"{url}/health", timeout=2)

    loading = threading.Thread(target=load)
    status = asyncio.run(listen(app_of(engine), engine, opened, drain=drain, ready=loading.start))
    took = time.monotonic() - at[0]
    for thread in (loading, *threads):
        with contextlib.suppress(RuntimeError):
            thread.join(5)
    return status, took, answers


@pytest.mark.row(67)
def test_a_signal_lets_answers_finish_for_a_while_and_fails_the_rest():
    status, took, answers = ended_by_signal(Scripted(*"ab" * 200, pause=0.05), drain=1)
    assert status == 0 and 1 <= took < 3
    assert answers[10][-1] == "data: [DONE]"
    assert json.loads(answers[200][-1][6:])["error"]["code"] == "unavailable"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_stuck_engine_and_an_impatient_user_end_the_server_in_time():
    engine = Scripted(*"ab" * 200, pause=0.05)
    engine.stuck = True
    status, took, answers = ended_by_signal(engine, drain=0.5)
    assert status == 0 and took < 2.5
    assert json.loads(answers[200][-1][6:])["error"]["code"] == "unavailable"
    status, took, _ = ended_by_signal(Scripted(*"ab" * 200, pause=0.05), drain=20, signals=2)
    assert status == 0 and took < 2


# --- whole


@pytest.fixture(scope="module")
def talking(tiny_experiment, tmp_path_factory) -> Path:
    """A model that can write for a while."""
    path = tmp_path_factory.mktemp("served") / "talking"
    shape = replace(tiny_experiment.model, context=512)
    train(replace(tiny_experiment, model=shape, steps=2), path)
    return path


def start(path: Path, *flags: str) -> tuple[subprocess.Popen, str, str]:
    """A server as a process, its address, and what to type next."""
    told = [sys.executable, "-m", "gptjax", "serve", str(path), "--port", "0", *flags]
    # a persistent cache refuses programs with oneDNN products, with a warning on standard error
    env = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    process = subprocess.Popen(
        told, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    line = wait_for(process, " is served at ")
    return process, line.split(" is served at ")[1].split(": ")[0], wait_for(process, "try: ")


@pytest.mark.slow
@pytest.mark.row(67)
def test_a_process_serves_a_model_and_ends_with_grace(talking, tmp_path):
    process, url, line = start(talking, "--slots", "2", "--drain", "1")
    try:
        typed = subprocess.run(
            line.removeprefix("try: "), shell=True, capture_output=True, text=True, timeout=100
        )
        assert typed.returncode == 0, typed.stderr
        assert json.loads(typed.stdout)["choices"][0]["message"]["role"] == "assistant"
        same = {"prompt": "The cat", "temperature": 0, "max_tokens": 20}
        asked = {**same, "n": 2, "regex": "[a-z ]{9}"}
        with httpx.Client(base_url=url, timeout=100) as client:
            text = client.post("/v1/completions", json=same).json()["choices"][0]["text"]
            found = gptjax.load(talking).engine(slots=2, context=512)
            with found:
                assert text == found.complete(["The cat"], temperature=0, new_tokens=20)[0].text
            choices = client.post("/v1/completions", json=asked).json()["choices"]
            assert [len(one["text"]) for one in choices] == [9, 9]
            assert client.get("/").status_code == client.get("/health").status_code == 200
            long = CHAT | {"model": "talking", "stream": True, "ignore_eos": True}
            with client.stream("POST", "/v1/chat/completions", json=long) as answer:
                lines = answer.iter_lines()
                next(lines)
                began = time.monotonic()
                process.send_signal(signal.SIGTERM)
                last = [one for one in lines if one][-1]
        ((status, _, log),) = ends([process], timeout=10)
    finally:
        process.kill()
    assert status == 0 and time.monotonic() - began < 3
    assert last == "data: [DONE]" or "error" in json.loads(last[6:])
    assert SECRET not in log
    assert [one for one in log.splitlines() if not one.startswith('{"time": ')] == []


@pytest.fixture(scope="module")
def judge(tmp_path_factory) -> Path:
    """A classifier that calls texts of many x harmful."""
    folder = tmp_path_factory.mktemp("judge")
    words = ("the cat", "a dog sat", "on the mat", "what is it", "hello there")
    rows = [f"{words[n % 5]} {n}\tharmless\nxxxx xxx {'x' * (n % 7)}\tharmful\n" for n in range(60)]
    (folder / "labels.tsv").write_text("".join(rows))
    experiment = Experiment(
        data=DataConfig(
            source=Records(str(folder / "labels.tsv")),
            tokenizer=Bytes(),
            validation=0.2,
            task=Classification(labels=("harmful", "harmless")),
        ),
        model=ModelConfig(context=64, width=32, num_layers=1, num_heads=2, causal=False),
        optim=AdamW(peak=1e-2),
        schedule=Schedule(warmup=3),
        evaluation=Evaluation(every=40),
        steps=40,
        batch=8,
    )
    train(experiment, folder / "run")
    return folder / "run"


@pytest.mark.slow
def test_a_process_reads_what_comes_in_and_marks_what_goes_out(talking, judge, tmp_path):
    key = tmp_path / "key.json"
    assert main(["detect-watermark", "--new-key", str(key), "--gamma", "0.5", "--delta", "9"]) == 0
    harmful = "xxxx xxx xxxxx"
    process, url, _ = start(talking, "--moderate", str(judge), "--watermark", str(key))
    try:
        with httpx.Client(base_url=url, timeout=100) as client:
            refused = client.post("/v1/completions", json={"prompt": harmful})
            assert refused.status_code == 400, refused.text
            assert refused.json()["error"]["code"] == "content_filter"
            asked = {"prompt": "The cat", "max_tokens": 200, "ignore_eos": True, "seed": 1}
            choice = client.post("/v1/completions", json=asked).json()["choices"][0]
            counted = client.get("/metrics").text
    finally:
        process.send_signal(signal.SIGTERM)
        ((status, _, log),) = ends([process], timeout=20)
    assert status == 0 and harmful not in log and '"moderated": "input"' in log
    assert 'gptjax_moderated_total{model_name="talking",where="input"} 1.0' in counted, counted
    assert choice["finish_reason"] == "length"
    ids = gptjax.load(talking).tokenizer.encode(choice["text"]).tolist()
    assert detect_watermark(ids, read_watermark(key)).p_value < 1e-3
