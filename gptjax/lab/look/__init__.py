"""What a model computes inside, as functions over `model.forward(…, observe=…, intervene=…)`.

Read `edits` (patch, ablate, shift: where, and what instead), then what is asked with them: `lens`,
`heads`, `patching`, `direct`, `attribution`, `probing`, `steering`, `autoencoder`. `pictures` and
`page` draw. There are no hooks and no state: everything runs under jit, vmap, grad and on a mesh.
"""

from gptjax.lab.look.attribution import (
    Attribution,
    grad_input,
    integrated_gradients,
    occlusion,
)
from gptjax.lab.look.autoencoder import (
    Autoencoder,
    autoencoder_figures,
    fit_autoencoder,
    loss_recovered,
    reconstruct,
)
from gptjax.lab.look.direct import Contributions, direct_attribution
from gptjax.lab.look.edits import (
    Site,
    ablate,
    edit_site,
    joined_edits,
    layers_with,
    patch,
    project_out,
    shift,
)
from gptjax.lab.look.fitting import minimise
from gptjax.lab.look.heads import (
    attention_patterns,
    attention_rollout,
    head_scores,
    repeated_tokens,
)
from gptjax.lab.look.lens import (
    Reading,
    Translators,
    fit_tuned_lens,
    lens_logits,
    read_lens,
    residual_streams,
)
from gptjax.lab.look.measures import answer_logprob, logit_difference
from gptjax.lab.look.patching import PatchGrid, patch_heads, patch_positions, path_effects
from gptjax.lab.look.probing import LinearProbe, control_labels, fit_probe, probe_layers
from gptjax.lab.look.steering import (
    Steering,
    mean_difference,
    open_steering,
    save_steering,
    steer,
    write_under,
)

__all__ = [
    "Attribution",
    "Autoencoder",
    "Contributions",
    "LinearProbe",
    "PatchGrid",
    "Reading",
    "Site",
    "Steering",
    "Translators",
    "ablate",
    "answer_logprob",
    "attention_patterns",
    "attention_rollout",
    "autoencoder_figures",
    "control_labels",
    "direct_attribution",
    "edit_site",
    "fit_autoencoder",
    "fit_probe",
    "fit_tuned_lens",
    "grad_input",
    "head_scores",
    "integrated_gradients",
    "joined_edits",
    "layers_with",
    "lens_logits",
    "logit_difference",
    "loss_recovered",
    "mean_difference",
    "minimise",
    "occlusion",
    "open_steering",
    "patch",
    "patch_heads",
    "patch_positions",
    "path_effects",
    "probe_layers",
    "project_out",
    "read_lens",
    "reconstruct",
    "repeated_tokens",
    "residual_streams",
    "save_steering",
    "shift",
    "steer",
    "write_under",
]
