"""What one process of `gpu.py` measures: ceilings, a training step, decoding, products of experts;
by gptjax or by PyTorch.

Each function prints one line of JSON behind `RESULT`. Run by `gpu.py`, as `gpu_jobs.py JOB`, a JSON
object with `run`, the function's name, and its arguments.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any


def give(**facts: Any) -> None:
    """Prints what was found."""
    print("RESULT " + json.dumps(facts), flush=True)


def median(run: Callable, *args: Any, turns: int = 10) -> float:
    """Seconds of a compiled function, the first call left out."""
    import jax

    jax.block_until_ready(run(*args))
    times = []
    for _ in range(turns):
        begun = time.perf_counter()
        jax.block_until_ready(run(*args))
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


# --- ceilings


def probe_torch(tiny: bool) -> None:
    """Rate of a large product, and time of both of PyTorch's fused kernels of attention."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    facts = {"torch": torch.__version__, "cudnn": torch.backends.cudnn.version()}
    if not tiny:
        from triton.testing import do_bench

        n = 8192
        a, b = (torch.randn(n, n, dtype=torch.bfloat16, device="cuda") for _ in "ab")
        facts["name"] = torch.cuda.get_device_name()
        facts["matmul_tflops"] = 2 * n**3 / do_bench(lambda: a @ b, return_mode="median") / 1e9
        q = torch.randn(32, 12, 1024, 64, dtype=torch.bfloat16, device="cuda", requires_grad=True)
        for kind in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION):
            with sdpa_kernel(kind):
                facts[f"{kind.name} forward and backward, ms"] = do_bench(
                    lambda: scaled_dot_product_attention(q, q, q, is_causal=True).sum().backward(),
                    return_mode="median",
                )
    give(**facts)


def probe_jax(tiny: bool) -> None:
    """Rate of a large product, what the trial says of the vendor's kernel, and its time beside the
    reference's."""
    import jax
    import jax.numpy as jnp

    from gptjax.model.attention import trial
    from gptjax.model.attention.select import VENDORS

    facts: dict[str, Any] = {"jax": jax.__version__, "devices": str(jax.devices())}
    n = 512 if tiny else 8192
    a, b = (jax.random.normal(jax.random.key(i), (n, n), jnp.bfloat16) for i in (0, 1))
    facts["matmul_tflops"] = 2 * n**3 / median(jax.jit(jnp.matmul), a, b) / 1e12
    vendor, _ = VENDORS.get(jax.default_backend(), ("", ""))
    facts["trials"] = trial.trial_report(vendor) if vendor else []
    shapes = {"GPT-2": (32, 1024, 12, 12, 64), "Llama 3.2 1B": (4, 4096, 32, 8, 64)}
    shapes = {"tiny": (1, 128, 2, 1, 64)} if tiny else shapes
    for name, (rows, length, heads, kv_heads, width) in shapes.items():
        q = jax.random.normal(jax.random.key(2), (rows, length, heads, width), jnp.bfloat16)
        k = jax.random.normal(jax.random.key(3), (rows, length, kv_heads, width), jnp.bfloat16)
        for how in ("xla", *(("cudnn",) if vendor == "cudnn" else ())):

            def loss(q, k, how=how):
                out = jax.nn.dot_product_attention(q, k, k, is_causal=True, implementation=how)
                return jnp.sum(out.astype(jnp.float32) ** 2)

            try:
                both = jax.jit(jax.grad(loss, argnums=(0, 1)))
                facts[f"attention of {name}, {how}, ms"] = 1e3 * median(both, q, k)
            except Exception as error:
                facts[f"attention of {name}, {how}"] = str(error)[:300]
    give(**facts)


# --- a training step


def config_of(shape: str, vocab: int, length: int, **changes: Any) -> Any:
    """The model of a shape, computing in bfloat16, without dropout."""
    from gptjax import model

    if shape == "llama1b":
        return model.llama(
            "3.2-1b", vocab_size=vocab, context=length, compute="bfloat16", **changes
        )
    small = {"num_layers": 2, "width": 64, "num_heads": 2} if shape == "tiny" else {}
    none = dict.fromkeys(("embedding_dropout", "attention_dropout", "residual_dropout"), 0.0)
    return model.gpt2(
        "124m",
        **(
            {"vocab_size": vocab, "context": length, "bias": False, "compute": "bfloat16"}
            | none
            | small
            | changes
        ),
    )


def train_gptjax(
    shape: str,
    vocab: int,
    length: int,
    rows: int,
    steps: int,
    layers: str,
    attention: str,
    parts: int,
    trace: str | None = None,
) -> None:
    """The step that `gptjax train` runs, with AdamW and clipping.

    Args:
      parts: of the vocabulary, in which the loss is computed.
      trace: folder for a trace of three further steps.
    """
    import functools

    import jax
    import jax.numpy as jnp
    import numpy as np

    from gptjax import model
    from gptjax.data import Batch
    from gptjax.losses import CrossEntropy
    from gptjax.train import optim, step

    config = config_of(shape, vocab, length, layers=layers, attention=attention)
    rate = optim.learning_rate(optim.Schedule(), 1e-3, 1000)
    optimizer = optim.build_optimizer(optim.AdamW(), rate)
    one = functools.partial(
        step.train_step,
        loss=CrossEntropy(vocab_parts=parts).build(config),
        optimizer=optimizer,
        rate=rate,
        seed=0,
        dropout=False,
    )
    state = jax.jit(lambda key: step.init(model.init(config, key), optimizer))(jax.random.key(0))
    ids = np.random.default_rng(0).integers(0, vocab, (rows, length + 1), np.int32)
    batch = Batch(ids[:, :-1], ids[:, 1:], np.ones((rows, length), np.float32))
    batch = jax.tree.map(jnp.asarray, batch)
    begun = time.perf_counter()
    compiled = jax.jit(one, donate_argnums=0).lower(state, {}, batch).compile()
    seconds = time.perf_counter() - begun
    state, metrics = compiled(state, {}, batch)
    first, times = float(metrics["loss"]), []
    for _ in range(steps):
        begun = time.perf_counter()
        state, metrics = compiled(state, {}, batch)
        metrics["loss"].block_until_ready()
        times.append(time.perf_counter() - begun)
    if trace:
        with jax.profiler.trace(trace):
            for _ in range(3):
                state, metrics = compiled(state, {}, batch)
            metrics["loss"].block_until_ready()
    used = compiled.memory_analysis()
    give(
        step_ms=1e3 * statistics.median(times),
        first=first,
        last=float(metrics["loss"]),
        compile_s=seconds,
        temporary_gib=used.temp_size_in_bytes / 2**30,
        arguments_gib=used.argument_size_in_bytes / 2**30,
        flops_token=model.flops_per_token(config, length),
        cudnn_calls=compiled.as_text().count("__cudnn$fmha"),
    )


def train_torch(shape: str, vocab: int, length: int, rows: int, steps: int, compiled: bool) -> None:
    """The same step by PyTorch: fused AdamW and clipping under autocast to bfloat16."""
    import torch

    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    device = "cpu" if shape == "tiny" else "cuda"
    loss_of = _torch_loss(shape, vocab, length, device)
    run = torch.compile(loss_of) if compiled else loss_of
    parameters = list(loss_of.parameters()) if hasattr(loss_of, "parameters") else loss_of.weights
    optimizer = torch.optim.AdamW(
        parameters, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )
    ids = torch.randint(vocab, (rows, length + 1), device=device)
    x, y = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()

    def one() -> Any:
        with torch.autocast(device, dtype=torch.bfloat16):
            loss = run(x, y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss

    def clock() -> float:
        begun = time.perf_counter()
        nonlocal last
        last = one()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begun

    begun = time.perf_counter()
    last = one()
    first, seconds = last.item(), time.perf_counter() - begun
    for _ in range(3):
        clock()
    step_seconds = statistics.median(clock() for _ in range(steps))
    peak = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else None
    give(
        step_ms=1e3 * step_seconds,
        first=first,
        last=last.item(),
        compile_s=seconds,
        peak_gib=peak,
    )


def _torch_loss(shape: str, vocab: int, length: int, device: str) -> Any:
    """The loss of (ids, targets); it has `parameters` or `weights`."""
    import torch

    if shape != "llama1b":
        from torch_gpt import GPT

        sizes = (64, 2, 2) if shape == "tiny" else (768, 12, 12)
        return GPT(vocab, length, *sizes).to(device)
    from transformers import LlamaConfig, LlamaForCausalLM

    module = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab,
            hidden_size=2048,
            intermediate_size=8192,
            num_hidden_layers=16,
            num_attention_heads=32,
            num_key_value_heads=8,
            tie_word_embeddings=True,
            max_position_embeddings=length,
            use_cache=False,
            attn_implementation="sdpa",
        )
    ).to(device)

    def loss_of(x: Any, y: Any) -> Any:
        logits = module(input_ids=x).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten())

    loss_of.weights = list(module.parameters())
    return loss_of


# --- decoding


def decode_gptjax(
    shape: str, rows: int, tokens: int, prompt: int, kind: str | None, tiny: bool
) -> None:
    """Greedy decoding by one compiled loop.

    Args:
      kind: how weights are stored; `None` is what `gptjax sample` does unasked.
    """
    import jax
    import numpy as np

    from gptjax import generate, model

    if tiny:
        config = config_of("tiny", 512, 512)
    elif shape == "smollm2":
        config = model.smollm("2-135m", context=2048, compute="bfloat16")
    else:
        config = config_of("llama1b", 128_256, 2048)
    params = jax.jit(model.init, static_argnums=0)(config, jax.random.key(0))
    config, params = model.prepare_weights(config, params, kind)
    jax.block_until_ready(params)
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (rows, prompt), np.int32)
    keys = jax.random.split(jax.random.key(0), rows)
    greedy = generate.Sampling(
        np.zeros(rows, np.float32),
        np.full(rows, config.vocab_size, np.int32),
        np.ones(rows, np.float32),
    )

    def clock(count: int) -> float:
        begun = time.perf_counter()
        out = generate.generate(
            config, params, ids, np.full(rows, prompt), keys, sampling=greedy, new_tokens=count
        )
        assert np.asarray(out.lengths).tolist() == [count] * rows
        return time.perf_counter() - begun

    read = sum(
        leaf.nbytes
        for leaf in jax.tree.leaves({k: v for k, v in params.items() if k != "embedding"})
    )
    _give_rate(clock, rows, tokens, read)


def decode_torch(shape: str, rows: int, tokens: int, prompt: int, static: bool, tiny: bool) -> None:
    """Greedy decoding by `transformers`, with a growing cache, or a static one and its compiled
    step."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {
        "smollm2": (49_152, 576, 1536, 30, 9, 3),
        "llama1b": (128_256, 2048, 8192, 16, 32, 8),
        "tiny": (512, 64, 128, 2, 2, 2),
    }["tiny" if tiny else shape]
    names = (
        *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
        *("num_attention_heads", "num_key_value_heads"),
    )
    device = "cpu" if tiny else "cuda"
    settings = dict(zip(names, sizes, strict=True))
    module = LlamaForCausalLM(
        LlamaConfig(**settings, tie_word_embeddings=True, max_position_embeddings=2048)
    )
    module = module.to(device, torch.bfloat16).eval()
    ids = torch.randint(sizes[0], (rows, prompt), device=device)
    how = {"cache_implementation": "static"} if static else {}

    @torch.inference_mode()
    def clock(count: int) -> float:
        begun = time.perf_counter()
        module.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=count,
            min_new_tokens=count,
            pad_token_id=0,
            eos_token_id=None,
            **how,
        )
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begun

    clock(tokens)
    _give_rate(clock, rows, tokens, sum(p.nbytes for p in module.parameters()))


def _give_rate(clock: Callable[[int], float], rows: int, tokens: int, read: int) -> None:
    """Gives tokens per second without the prompt: the time of all tokens less that of one."""
    clock(tokens), clock(1)
    whole = statistics.median(clock(tokens) for _ in range(3))
    head = statistics.median(clock(1) for _ in range(3))
    rate = (tokens - 1) / (whole - head)
    give(tok_s=rows * rate, prefill_ms=1e3 * head, weight_gb_s=read * rate / 1e9)


# --- experts


def experts(tiny: bool) -> None:
    """Products grouped by expert with `ragged_dot`: whether a kernel takes them, or they are made
    dense."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    tokens, width, wide, count = (256, 32, 64, 4) if tiny else (32_768, 2048, 1536, 64)
    shares = np.random.default_rng(0).multinomial(tokens, [1 / count] * count)
    sizes = jnp.asarray(shares, jnp.int32)
    x = jax.random.normal(jax.random.key(0), (tokens, width), jnp.bfloat16)
    w = jax.random.normal(jax.random.key(1), (count, width, wide), jnp.bfloat16)

    def forward(x, w):
        return jax.lax.ragged_dot(x, w, sizes)

    def loss(x, w):
        return jnp.sum(forward(x, w).astype(jnp.float32) ** 2)

    facts = {}
    for name, run, products in (
        ("forward", forward, 1),
        ("forward and backward", jax.grad(loss, argnums=(0, 1)), 3),
    ):
        compiled = jax.jit(run).lower(x, w).compile()
        text, seconds = compiled.as_text().lower(), median(compiled, x, w)
        facts[name] = {
            "ms": 1e3 * seconds,
            "tflops": products * 2 * tokens * width * wide / seconds / 1e12,
            "temporary_gib": compiled.memory_analysis().temp_size_in_bytes / 2**30,
            "cudnn": "cudnn" in text,
            "ragged": "ragged" in text,
        }
    give(**facts)


if __name__ == "__main__":
    job = json.loads(sys.argv[1])
    {
        one.__name__: one
        for one in (
            *(probe_torch, probe_jax, train_gptjax, train_torch),
            *(decode_gptjax, decode_torch, experts),
        )
    }[job.pop("run")](**job)
