"""A plan as text."""

from __future__ import annotations

from typing import Any

from gptjax.observe.progress import duration, human


def format_plan(facts: dict[str, Any]) -> str:
    """Formats a plan for the terminal."""
    mesh = " × ".join(f"{axis} {size}" for axis, size in facts["mesh"].items()) or "one device"
    active = (
        ""
        if facts["active_parameters"] == facts["parameters"]
        else f", of which {facts['active_parameters']:,} are active per token"
    )
    lines = [
        f"target       {facts['target']}: {facts['devices']:,} × {facts['chip']}, mesh {mesh}",
        f"verdict      {_verdict(facts)}",
        (
            "memory      "
            f" {', '.join(f'{name} {gib(size)}' for name, size in facts['memory'].items())}; GiB a"
            " device"
        ),
        f"parameters   {facts['parameters']:,}{active}",
        *_weights(facts["weights"]),
        *_rollout(facts.get("rollout")),
    ]
    if facts["flops"]:
        flops = facts["flops"]
        counted = (
            f"; XLA, which counts loops once, says {human(flops['as_xla_counts'])}"
            if flops["as_xla_counts"]
            else ""
        )
        kernels = (
            f", {human(flops['kernels'])} of them in hand-written kernels"
            if flops["kernels"]
            else ""
        )
        lines += [
            (
                f"FLOPs        {human(facts['flops_per_step'])} per step of"
                f" {facts['tokens_per_step']:,} tokens; a device computes {human(flops['model'])}"
                f" of the model's, {human(flops['hardware'])} with rematerialisation{kernels}"
                f"{counted}"
            ),
            *_context(facts["context"]),
            *_network(facts),
            *_times(facts),
            *_published(facts["published"]),
            *_dearest(facts),
        ]
    lines += [f"note         {note}" for note in facts["notes"]]
    if facts.get("change"):
        lines.append(f"change       {facts['change']}")
    return "\n".join([*lines, f"compiled in  {facts['compile_seconds']:.0f} s of one core"])


def _weights(sizes: dict[str, int]) -> list[str]:
    """Says what trains, what is frozen and which other models are in memory, if not all trains."""
    if set(sizes) == {"train"}:
        return []
    parts = [f"{name} {gib(size)}" for name, size in sizes.items() if name != "cached"]
    kept = sizes.get("cached")
    cached = f"; the reference is cached, {kept} bytes an example on the host" if kept else ""
    return [f"weights      {', '.join(parts)}; GiB a device{cached}"]


def _rollout(facts: dict[str, Any] | None) -> list[str]:
    """Says what writing answers needs, if the run learns from them."""
    if facts is None:
        return []
    fits = "fits" if facts["fits"] else "does NOT fit"
    found = (
        f"rollout      {fits}: {gib(facts['peak_bytes_per_device'])} GiB a device with the state,"
        f" of which cache {gib(facts['cache_bytes_per_device'])}; {facts['answers']:,} answers of"
        f" at most {facts['new_tokens']:,} tokens, {facts['rows']:,} at once"
    )
    if facts["seconds"] is None:
        return [found]
    return [f"{found}; at least {facts['seconds_per_step']:.3g} s a step, if all are that long"]


def _context(facts: dict[str, Any] | None) -> list[str]:
    if facts is None:
        return []
    return [
        (
            f"context      {facts['order']} over {facts['devices']} devices: {facts['why']}; the"
            f" slowest computes {facts['slowest']:.2f} × as long as the mean"
        )
    ]


def gib(size: float) -> str:
    """Formats bytes as GiB, with three digits."""
    size /= 2**30
    return f"{size:,.2f}" if size < 10 else f"{size:,.1f}"


def _verdict(facts: dict[str, Any]) -> str:
    written = facts.get("rollout")
    if (
        written
        and not written["fits"]
        and facts["peak_bytes_per_device"] <= facts["memory_bytes_per_device"]
    ):
        return "does NOT fit: the step does, its rollout does not (--rollout.rows, fewer at once)"
    needs, has = gib(facts["peak_bytes_per_device"]), gib(facts["memory_bytes_per_device"])
    return (
        f"fits: {needs} of {has} GiB a device"
        if facts["fits"]
        else f"does NOT fit: {needs} GiB of {has} a device"
    )


def _network(facts: dict[str, Any]) -> list[str]:
    rows = facts["collectives"]
    if not rows:
        return ["network      nothing is exchanged"]
    total = {
        where: sum(row["bytes_per_device"] for row in rows if row["network"] == where)
        for where in dict.fromkeys(row["network"] for row in rows)
    }
    sums = ", ".join(f"{size / 1e9:,.2f} GB over {where}" for where, size in total.items())
    lines = [f"network      {sums}; sent by a device in a step"]
    for row in rows:
        seconds = f", {duration(row['seconds'])}" if row["seconds"] else ""
        way = (
            f"{row['kind']} over {' '.join(row['axes']) or 'none'} ({row['network']}),"
            f" {row['times']:,.0f} times{seconds}"
        )
        lines.append(f"             {row['bytes_per_device'] / 1e9:9,.3f} GB  {way}")
    return lines


def _times(facts: dict[str, Any]) -> list[str]:
    if not facts["step_seconds"]:
        return []
    (low, high), (best, worst), margin = facts["step_seconds"], facts["mfu"], facts["margin"]
    parts = ", ".join(
        f"{name.upper() if name in ('ici', 'dcn', 'nic') else name} {seconds:.3f} s"
        for name, seconds in facts["seconds"].items()
    )
    fast, slow = facts["tokens_per_second"]
    square = "{:.1%} … {:.1%}".format(*facts["mfu_whole_square"])
    return [
        (
            f"step         {low:.3f} … {high:.3f} s (network hidden … not hidden), ± {margin:.0%}:"
            f" {parts}; longest is {facts['bound']}"
        ),
        (
            f"speed        {human(slow)} … {human(fast)}tokens/s, MFU {worst:.1%} … {best:.1%}"
            f" (with attention counted as a whole square, as papers do, {square})"
        ),
    ]


def _published(facts: dict[str, Any] | None) -> list[str]:
    if facts is None:
        return []
    steps = f"{facts['steps']} published steps" if facts["steps"] > 1 else "one published step"
    expected = f"{facts['seconds']:.3f} s, ± {facts['margin']:.0%}"
    return [f"published    {expected}, by {steps} on such chips (docs/reports/plan.md)"]


def _dearest(facts: dict[str, Any]) -> list[str]:
    lines = ["dearest"]
    for row in facts["dearest"]:
        seconds = f"{1e3 * row['seconds']:10.2f} ms" if row["seconds"] is not None else ""
        lines.append(
            f"  {seconds}  {row['times']:6,.0f} ×  {row['operation']}"
            f" [{' '.join(map(str, row['shape']))}]"
        )
    return lines
