"""Several processes that train one run: how they connect, what they exchange, and how they
end together.

JAX's own runtime does the work: `jax.distributed` finds the cluster, XLA's collectives carry the
arrays. Here is what the hosts need beside it, over the store of small values that the coordinator
keeps. With one process everything returns at once.

Read in this order: `join`; `first`, `gather`, `by_first`, `in_turn` (all processes call these in
the same order); `Votes`, which all cast at every step; `leave`, by which the first failure ends
all.
"""

from __future__ import annotations

import atexit
import collections
import contextlib
import json
import math
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from gptjax.core.config import ConfigError, require

FOR_EVER = 7 * 24 * 3600 * 1000
"""Milliseconds. No process waits that long: where a process is gone or fails, the runtime or
`_listen` ends the others."""

GRACE = 2.0
"""Seconds that process 0, whose exit ends the coordinator, gives the others to read the reason."""

_rounds: collections.Counter[str] = collections.Counter()
_ending = threading.Lock()
"""Held for good by the thread that ends this process, so that one line says why."""


def join(
    coordinator: str | None,
    num_processes: int | None,
    process: int | None,
    *,
    init_timeout: float,
    heartbeat_timeout: int,
) -> None:
    """Connects this process to the others of its run, before anything asks for devices.

    Args:
      coordinator: HOST:PORT of process 0. None lets JAX find the cluster: TPU pods, Slurm, GKE,
        MPI.
      init_timeout: seconds within which all must come, or the process ends with status 2.
      heartbeat_timeout: seconds of a process's silence after which the runtime ends the others.

    Raises:
      ConfigError: no cluster is found, the address can't be used, or the numbers do not fit.
    """
    import jax

    given = (coordinator, num_processes, process)
    require(
        None not in given or not any(part is not None for part in given),
        "several processes need --coordinator HOST:PORT, --num-processes N and --process I"
        " together.",
    )
    bind = None if coordinator is None else _bind_address(coordinator, num_processes, process)
    place = (
        f"process {process} of {num_processes}, at {coordinator}"
        if coordinator
        else "in the cluster that JAX finds"
    )
    print(f"meeting the other processes: {place} (at most {init_timeout:g} s)", flush=True)
    late = threading.Timer(init_timeout, _give_up, (init_timeout, coordinator))
    late.daemon = True
    late.start()  # the runtime itself would end in SIGABRT and a stack of C++, without the address
    try:
        jax.distributed.initialize(
            *given,
            coordinator_bind_address=bind,
            initialization_timeout=math.ceil(init_timeout) + 60,
            heartbeat_timeout_seconds=heartbeat_timeout,
            cluster_detection_method=None if coordinator is None else "deactivate",
        )
    except ValueError as error:
        raise ConfigError(
            f"JAX found no cluster here ({error}); give --coordinator HOST:PORT --num-processes N"
            " --process I."
        ) from None
    except RuntimeError as error:
        raise ConfigError(
            f"the coordinator at {coordinator or _runtime().coordinator_address} can't be used:"
            f" {error}. Is its port taken? Choose another (--coordinator)."
        ) from None
    finally:
        late.cancel()
    listening = threading.Thread(target=_listen, name="others", daemon=True)
    listening.start()
    atexit.register(_part, listening)


def _bind_address(coordinator: str, num_processes: int, process: int) -> str | None:
    """Returns the address at which the coordinator listens: its own if it is meant for this machine
    alone; `None` is all of this machine's."""
    require(
        0 <= process < num_processes,
        f"--process is {process} of {num_processes}; it needs a number from 0 to"
        f" {num_processes - 1}.",
    )
    host, port = _address(coordinator)
    local = host in ("localhost", "::1") or host.startswith("127.")
    if process == 0:
        _require_free(coordinator, host if local else "", port)
    return coordinator if local else None


def _address(coordinator: str) -> tuple[str, int]:
    host, _, port = coordinator.rpartition(":")
    require(
        bool(host) and port.isdecimal() and 0 < int(port) < 2**16,
        f"--coordinator is {coordinator!r}; it needs HOST:PORT, for example 10.0.0.1:8476.",
    )
    return host.strip("[]"), int(port)


def _require_free(coordinator: str, host: str, port: int) -> None:
    """The runtime shares a port with another of its kind, so that two runs would mix."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(
                socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
            )  # a run that has just ended does not hold it
            probe.bind((host, port))
    except OSError as error:
        raise ConfigError(
            f"the coordinator can't listen at {coordinator} ({error.strerror}); choose another port"
            " (--coordinator)."
        ) from None


def _give_up(seconds: float, coordinator: str | None) -> None:
    state = _runtime()
    address = coordinator or state.coordinator_address or "an unknown address"
    if state.process_id == 0:
        said = (
            f"not all of {state.num_processes} processes came to {address} within {seconds:g} s;"
            " start the others with this --coordinator"
        )
    else:
        said = (
            f"the coordinator (process 0) did not answer at {address} within {seconds:g} s; is it"
            " started, and is the port open?"
        )
    with contextlib.suppress(OSError):
        os.write(2, f"error: {said} (--init-timeout)\n".encode())
    os._exit(2)


# --- what they say to each other


def several() -> bool:
    """Whether this process is one of several."""
    return "jax" in sys.modules and _runtime().client is not None


def index() -> int:
    """Index of this process; 0 if it is alone."""
    return _runtime().process_id if several() else 0


def count() -> int:
    """Number of processes."""
    return _runtime().num_processes if several() else 1


def first() -> bool:
    """Whether this is the process that prints, logs and commits."""
    return index() == 0


def gather(name: str, value: Any) -> list[Any]:
    """Gathers a JSON value from each process, in order of their index. All wait for the last one.

    Args:
      name: of the occasion; all processes come to those of one name in the same order, whatever
        thread they come from.
    """
    if not several():
        return [value]
    client, key, turn = _runtime().client, f"gptjax/{name}", _rounds[name]
    _rounds[name] += 1
    client.key_value_set(f"{key}/{turn}/{index()}", json.dumps(value))
    client.wait_at_barrier(f"{key}/{turn}", FOR_EVER)
    said = dict(client.key_value_dir_get(f"{key}/{turn}/"))
    if first() and turn:
        client.key_value_delete(f"{key}/{turn - 1}/")  # whoever is here has read it
    return [
        json.loads(value)
        for _, value in sorted(said.items(), key=lambda pair: int(pair[0].rpartition("/")[2]))
    ]


def own_log() -> str:
    """Returns the name of this process's text log in a run directory."""
    return "log.txt" if first() else f"log.{index()}.txt"


def by_first(name: str, do: Callable[[], Any]) -> Any:
    """Broadcasts a JSON value that process 0 alone computes."""
    return gather(name, do() if first() else None)[0]


@contextlib.contextmanager
def in_turn(name: str) -> Iterator[None]:
    """Runs a function on process 0 first and then on all others, which may find it done."""
    if not first():
        gather(name, None)
    yield
    if first():
        gather(name, None)


def require_alike(facts: dict[str, str]) -> None:
    """Refuses to go on where the processes differ in what must be the same: they would compute
    nonsense without a word.

    Raises:
      ConfigError: names the fact, and the first process that differs from process 0.
    """
    told = gather("alike", facts)
    for what, mine in told[0].items():
        for other, theirs in enumerate(told):
            require(
                theirs[what] == mine,
                f"process {other} has another {what} than process 0 ({theirs[what]} and {mine});"
                " start all processes with the same.",
            )


class Votes:
    """Whether any process was asked to stop; all of them get the same answer at the same call, so
    that all stop after the same step.

    A call casts a vote and gives the outcome of the call before: its numbers travel behind the step
    that was just begun, and nobody waits.
    """

    def __init__(self, asked: Callable[[], bool]):
        self._asked, self._decided, self._cast = asked, False, None
        self.seen: collections.deque[Any] = collections.deque(maxlen=20)
        """Of the last steps, for each process [own, waited]: see `train/pace.py`. Empty where there
        is only one."""
        if not several():
            return
        import jax
        import numpy as np
        from jax.sharding import Mesh, NamedSharding, PartitionSpec

        one = {device.process_index: device for device in reversed(jax.devices())}
        mesh = Mesh(np.asarray([one[i] for i in sorted(one)]), ("process",))
        self._place = lambda row: jax.make_array_from_process_local_data(
            NamedSharding(mesh, PartitionSpec("process")), np.asarray([row], np.float32)
        )
        self._tell = jax.jit(lambda rows: rows, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def __call__(self, own: float = math.nan, waited: float = math.nan) -> bool:
        """Casts a vote; the seconds of a step travel with it, where there is one to speak of."""
        if not several():
            return self._asked()
        import numpy as np

        before, self._cast = self._cast, self._tell(self._place([self._asked(), own, waited]))
        if before is not None:
            rows = np.asarray(before)
            self._decided |= bool(rows[:, 0].any())
            if not np.isnan(rows).any():
                self.seen.append(rows[:, 1:])
        return self._decided


# --- how they end


def leave(status: int, said: str) -> None:
    """Ends this process's part. After a failure it does not return: waiting for the others, as
    Python's end does, could take for ever.

    The first process that fails says why on stderr, and thereby ends the others; they say which one
    it was.
    """
    if status == 0:
        import jax

        jax.distributed.shutdown()  # which waits for the others
        return
    claimed = _claim(said)
    _ending.acquire()
    _end(said if claimed in (None, index()) else _other(claimed), status)


def _part(listening: threading.Thread) -> None:
    """At Python's end: takes leave of the others, which ends `_listen`. A thread that comes back
    from C++ later than that ends Python in SIGABRT."""
    import jax

    try:
        jax.distributed.shutdown()
    finally:
        listening.join(GRACE)


def _claim(said: str) -> int | None:
    """Which process failed first; none if the coordinator does not answer, since it is what
    failed."""
    found: list[int] = []

    def ask() -> None:
        client = _runtime().client
        with contextlib.suppress(Exception):  # somebody was faster
            client.key_value_set("gptjax/failed", f"{index()} {said}")
        with contextlib.suppress(Exception):
            found.append(int(client.blocking_key_value_get("gptjax/failed", 1000).split()[0]))

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(2 * GRACE)
    return found[0] if found else None


def _listen() -> None:
    """Ends this process when another one has failed: it would wait for it for ever in a
    collective."""
    client = _runtime().client
    while True:
        try:
            failed = int(client.blocking_key_value_get("gptjax/failed", 3600 * 1000).split()[0])
        except Exception as error:
            if "DEADLINE_EXCEEDED" in str(error):
                continue
            return  # the end of the run; or the coordinator is gone, and the runtime ends us
        if failed != index():
            _ending.acquire()
            _end(_other(failed), 1)
        return


def _other(failed: int) -> str:
    return (
        f"error: process {failed} failed, and its own output says why; process {index()} ends too."
    )


def _end(line: str, status: int) -> None:
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    with contextlib.suppress(OSError):
        os.write(2, f"{line}\n".encode() if line else b"")
    if first():
        time.sleep(GRACE)
    os._exit(status)


def lost(error: Exception) -> str:
    """How to begin what is said of an error that comes of another process's end; empty for any
    other error."""
    words = (
        "gloo",
        "connection closed by peer",
        "connection reset",
        "nccl",
        "coordination service",
        "heartbeat",
    )
    return (
        "the connection to another process broke, so it was killed or lost its network: "
        if several() and any(word in str(error).lower() for word in words)
        else ""
    )


def _runtime() -> Any:
    """JAX's store of small values has no public name yet; Orbax uses this one too."""
    from jax._src import distributed

    return distributed.global_state
