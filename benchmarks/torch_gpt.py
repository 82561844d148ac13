"""A plain GPT in PyTorch with nanoGPT's CPU settings on tiny Shakespeare: the peer of
`configs/shakespeare_char.py`.

    # the whole job, as a user of PyTorch would run it
    python benchmarks/torch_gpt.py input.txt
    python benchmarks/torch_gpt.py input.txt --steps 200 --compile

Written for this comparison from the paper's description: 4 pre-norm layers, width 128, 4 heads, 64
characters, batch 12, 2,000 steps of AdamW, evaluation over 20 random batches of both splits every
250 steps. Prints the wall time from process start, the loss over all validation characters in
blocks of 64, and milliseconds per step.
"""

import argparse
import math
import time
from pathlib import Path

BEGUN = time.monotonic()

import numpy as np
import torch
from torch import nn
from torch.nn import functional

T, D, N, L, B = 64, 128, 4, 4, 12


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
        self.qkv, self.out = (
            nn.Linear(width, 3 * width, bias=False),
            nn.Linear(width, width, bias=False),
        )
        self.up, self.down = (
            nn.Linear(width, 4 * width, bias=False),
            nn.Linear(4 * width, width, bias=False),
        )

    def forward(self, x):
        rows, length, width = x.shape
        q, k, v = (
            y.view(rows, length, self.heads, width // self.heads).transpose(1, 2)
            for y in self.qkv(self.norm1(x)).split(width, dim=2)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(rows, length, width))
        return x + self.down(functional.gelu(self.up(self.norm2(x)), approximate="tanh"))


class GPT(nn.Module):
    def __init__(self, vocabulary, context=T, width=D, heads=N, layers=L):
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        self.blocks, self.norm = (
            nn.ModuleList(Block(width, heads) for _ in range(layers)),
            nn.LayerNorm(width, bias=False),
        )
        for name, p in self.named_parameters():
            if p.dim() == 2:
                nn.init.normal_(
                    p,
                    std=(
                        0.02 / math.sqrt(2 * layers)
                        if name.endswith(("out.weight", "down.weight"))
                        else 0.02
                    ),
                )

    def forward(self, ids, targets):
        x = self.tokens(ids) + self.places.weight[None, : ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits = functional.linear(self.norm(x), self.tokens.weight)
        return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("text")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--bfloat16", action="store_true")
    parser.add_argument("--seed", type=int, default=1337)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    text = Path(args.text).read_text(encoding="utf-8")
    symbols = {c: i for i, c in enumerate(sorted(set(text)))}
    ids = torch.from_numpy(np.array([symbols[c] for c in text], np.int64))
    cut = int(0.9 * len(ids))
    splits = {"train": ids[:cut], "validation": ids[cut:]}
    model = GPT(len(symbols))
    decayed = [p for p in model.parameters() if p.dim() >= 2]
    rest = [p for p in model.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}],
        lr=1e-3,
        betas=(0.9, 0.99),
    )
    run = torch.compile(model) if args.compile else model

    def batch(split):
        starts = torch.randint(len(splits[split]) - T, (B,)).tolist()
        rows = [splits[split][s : s + T + 1] for s in starts]
        return torch.stack([r[:-1] for r in rows]), torch.stack([r[1:] for r in rows])

    def loss_of(x, y):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=args.bfloat16):
            return run(x, y)

    took = []
    for step in range(args.steps + 1):
        if step % 250 == 0:
            model.eval()
            with torch.no_grad():
                means = {
                    split: np.mean([loss_of(*batch(split)).item() for _ in range(20)])
                    for split in splits
                }
            model.train()
            print(
                f"step {step}: train {means['train']:.4f} validation {means['validation']:.4f} at"
                f" {time.monotonic() - BEGUN:.1f}s",
                flush=True,
            )
        if step == args.steps:
            break
        begun = time.monotonic()
        share = (
            (step + 1) / 101
            if step < 100
            else 0.1 + 0.45 * (1 + math.cos(math.pi * (step - 100) / (args.steps - 100)))
        )
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * share
        loss = loss_of(*batch("train"))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        took.append(time.monotonic() - begun)
    wall = time.monotonic() - BEGUN
    held = splits["validation"]
    rows = (len(held) - 1) // T
    x, y = held[: rows * T].view(rows, T), held[1 : rows * T + 1].view(rows, T)
    with torch.no_grad():
        total = sum(
            loss_of(x[i : i + 64], y[i : i + 64]).item() * len(x[i : i + 64])
            for i in range(0, rows, 64)
        )
    print(
        f"wall {wall:.1f}s  step {1e3 * np.median(took):.1f} ms  validation over all {rows * T}"
        f" characters {total / rows:.4f}"
    )


if __name__ == "__main__":
    main()
