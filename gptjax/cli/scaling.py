"""`gptjax scaling fit`: the law of loss against compute over finished runs."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass

from gptjax.core import user_config
from gptjax.core.config import require


@dataclass(frozen=True)
class ScalingOptions:
    """Flags of `scaling fit`."""

    predict: tuple[str, ...] = ()
    """Finished runs to predict and compare; they are not fitted."""
    flops: float | None = None
    """FLOPs of a run to predict."""
    json: bool = False
    """Print one JSON object."""


def scaling_command(args: list[str]) -> None:
    """Fits loss against compute over finished runs, and predicts larger ones."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    count = next((i for i, arg in enumerate(args) if arg.startswith("-")), len(args))
    options = user_config.cli(
        ScalingOptions,
        args[count:],
        prog="gptjax scaling fit RUN RUN ...",
        description="Fits loss against compute over finished runs, and predicts larger ones.",
    )
    require(
        args[:1] == ["fit"],
        f"scaling {' '.join(args[:1])}: the only action is fit: gptjax scaling fit RUN RUN RUN"
        " RUN.",
    )
    from gptjax.plan import scaling

    points = scaling.load_points(args[1:count])
    wanted = scaling.points_to_predict(options.predict, options.flops)
    facts = scaling.fit_and_predict(points, wanted)
    print(json.dumps(facts, indent=2) if options.json else scaling.format_scaling(facts))
