"""Three small steps for machines that are not here, whose plans are kept in fixtures/plans.json.

JAX_PLATFORMS=cpu PYTHONPATH=. python tests/small_plans.py      # writes them anew; needs the extras
plan-tpu and plan-gpu
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from gptjax.data import Bytes, DataConfig, Text
from gptjax.losses import CrossEntropy
from gptjax.model import ModelConfig
from gptjax.sharding.mesh import MeshConfig
from gptjax.train.experiment import Experiment

GOLDEN = Path(__file__).parent / "fixtures" / "plans.json"


class Case(NamedTuple):
    target: str
    mesh: dict[str, int]
    changed: dict[str, Any]


CASES = {
    "tpu_fsdp": Case("v5e:2x4", {"fsdp": 8}, {}),
    "tpu_fsdp_tensor": Case("v5e:2x4", {"fsdp": 4, "tensor": 2}, {}),
    "gpu_fsdp": Case("h100:1x8", {"fsdp": 8}, {"attention": "reference"}),
}


def llama(mesh: dict[str, int], **changed: Any) -> Experiment:
    """Four Llama blocks of width 512, eight rows of 1,024 tokens."""
    model = {
        "width": 512,
        "num_layers": 4,
        "num_heads": 4,
        "context": 1024,
        "positions": "rope",
        "norm": "rmsnorm",
        "activation": "swiglu",
        "bias": False,
        "tied": False,
    }
    model |= {"vocab_size": 4096, "compute": "bfloat16", "remat": "full"} | changed
    data = DataConfig(source=Text("none.txt"), tokenizer=Bytes(), isolated=False)
    return Experiment(
        model=ModelConfig(**model),
        loss=CrossEntropy(vocab_parts=4),
        data=data,
        mesh=MeshConfig(**mesh),
        batch=8,
    )


def golden(case: Case) -> dict[str, Any]:
    """What is kept of a case's plan."""
    from gptjax.plan import target as targets
    from gptjax.plan.plan import plan_step

    facts = plan_step(
        llama(case.mesh, **case.changed), targets.parse_target(case.target), fast=True
    )
    sent: dict[str, float] = {}
    for row in facts["collectives"]:
        name = f"{row['kind']} over {' '.join(row['axes'])}"
        sent[name] = sent.get(name, 0.0) + row["bytes_per_device"]
    return {
        "hardware": facts["flops"]["hardware"],
        "kernels": facts["flops"]["kernels"],
        "peak": facts["peak_bytes_per_device"],
        "sent": sent,
    }


if __name__ == "__main__":
    GOLDEN.write_text(
        json.dumps({name: golden(case) for name, case in CASES.items()}, indent=1) + "\n",
        encoding="utf-8",
    )
