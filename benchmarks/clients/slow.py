"""Attacks a server with slowhttptest, 500 sockets at a time, while a good client goes on asking.

    apt install slowhttptest
    python benchmarks/clients/slow.py http://127.0.0.1:8000 [--seconds 60]

Four attacks: headers that never end, bodies that never end, answers that are read a few bytes at a
time, and ranges. Of each it prints how many sockets were open at once, how slowhttptest ended, and
the median and longest time in which the good client, a new connection twice a second, got a whole
chat answer of one token. It fails if that was more than a second.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
import subprocess
import time
import urllib.error
import urllib.request

ATTACKS = {
    "slow headers": ["-H", "-i", "2"],
    "slow bodies": ["-B", "-i", "2", "-s", "8192"],
    "slow readers": ["-X", "-w", "16", "-y", "64", "-n", "2", "-z", "16", "-k", "3"],
    "ranges": ["-R"],
}


def ask(url: str, key: str | None) -> float:
    """Seconds that a good client's chat takes."""
    body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}
    headers = {"Content-Type": "application/json", "Connection": "close"}
    if key is not None:
        headers["Authorization"] = f"Bearer {key}"
    since = time.perf_counter()
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", json.dumps(body).encode(), headers
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        json.load(answer)
    return time.perf_counter() - since


def ready(url: str) -> bool:
    """Whether every program is compiled."""
    try:
        with urllib.request.urlopen(f"{url}/ready", timeout=60) as answer:
            return answer.status == 200
    except urllib.error.HTTPError:
        return False
    except urllib.error.URLError as error:
        raise SystemExit(f"{url} does not answer ({error.reason}); start gptjax serve.") from None


def attacked(url: str, key: str | None, flags: list[str], options: argparse.Namespace) -> dict:
    """Attacks once; gives what the good client and slowhttptest saw."""
    target = f"{url}/openapi.json" if flags[0] in ("-X", "-R") else f"{url}/v1/chat/completions"
    command = ["slowhttptest", *flags, "-u", target, "-c", str(options.sockets), "-r", "200"]
    command += ["-l", str(options.seconds), "-p", "5", "-v", "1"]
    attack = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    took = []
    while attack.poll() is None:
        took.append(ask(url, key))
        time.sleep(0.5)
    told = re.sub(r"\x1b\[[0-9;]*m", "", attack.communicate()[0])
    return {
        "open at once": max(map(int, re.findall(r"connected:\s+(\d+)", told)), default=0),
        "good requests": len(took),
        "median": round(statistics.median(took), 3),
        "longest": round(max(took), 3),
        "available": "service available:   NO" not in told,
        "ended": (re.findall(r"Exit status: (.*)", told) or ["?"])[-1],
    }


def main() -> None:
    """Runs the four attacks one after the other."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("url")
    parser.add_argument("--key")
    parser.add_argument("--sockets", type=int, default=500)
    parser.add_argument("--seconds", type=int, default=60)
    options = parser.parse_args()
    if shutil.which("slowhttptest") is None:
        raise SystemExit("slowhttptest is not installed; apt install slowhttptest.")
    while not ready(options.url):
        time.sleep(1)
    alone = [ask(options.url, options.key) for _ in range(5)]
    print("alone: longest", round(max(alone[1:]), 3), "s", flush=True)
    worst = 0.0
    for name, flags in ATTACKS.items():
        found = attacked(options.url, options.key, flags, options)
        print(f"{name}: {json.dumps(found)}", flush=True)
        worst = max(worst, found["longest"])
    if worst > 1:
        raise SystemExit(f"A good client waited {worst:.1f} s; 1 is the limit.")


if __name__ == "__main__":
    main()
