"""Self-Extend, Dual Chunk Attention and ReRoPE against plain attention: python benchmarks/remapping.py --help

Each method's attention on raw q and k, its rotations included, is timed against torch's scaled_dot_product_attention on
the same tensors without any rotation: the prefill of T = 4C tokens, causal, and one token after T of them in the cache.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from timing import interleaved, median_interval
from torch.nn.functional import scaled_dot_product_attention

from drope.models.attention import Mask, Rotation
from drope.models.attention.heads import sdpa
from drope.positions import DualChunk, ReRope, RopeShape, SelfExtend
from drope.results import Measurement, Results, describe_run

FACTOR, HEADS, KV, WIDTH = 4, 8, 2, 64
TARGET = 2.5


def functions(context: int, tokens: int, queries: int, device: str, dtype: torch.dtype) -> dict[str, Callable]:
    """Attention of the last `queries` of `tokens` tokens, by name; `sdpa` is the plain one."""
    q = torch.randn(1, HEADS, queries, WIDTH, device=device, dtype=dtype)
    k, v = torch.randn(2, 1, KV, tokens, WIDTH, device=device, dtype=dtype)
    shape, scaling = RopeShape(1e4, WIDTH, context), WIDTH**-0.5
    rotation = Rotation(1e4 ** -(torch.arange(0, WIDTH, 2, device=device) / WIDTH))

    def plain():
        if queries == 1:
            return sdpa(q, k, v, scaling=scaling)  # as drope's own plain attention: copies no keys
        return scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=True)

    def remapped(method) -> Callable:
        scheme = method.requirements(shape, FACTOR * context).attention
        attend = importlib.import_module(f"drope.models.attention.{scheme.name}").attend
        # a new mask for each call: positions are counted once in a forward pass of a model, not once for each layer
        return lambda: attend(scheme, q, k, v, mask=Mask.of(None, q, k), rotation=rotation, scaling=scaling)

    return {"sdpa": plain, **{method.name: remapped(method) for method in (SelfExtend(), DualChunk(), ReRope())}}


def measure(contexts: list[int], rounds: int, device: str, dtype: torch.dtype) -> list[Measurement]:
    """CPU seconds of every function, and each method's ratio to `sdpa`, paired by round."""
    made = []
    for context in contexts:
        tokens = FACTOR * context
        for task, queries in (("prefill", tokens), ("decode", 1)):
            seconds = interleaved(functions(context, tokens, queries, device, dtype), rounds)
            for name, own in seconds.items():
                details = {"context": context, "heads": HEADS, "kv_heads": KV, "head_dim": WIDTH, "dtype": str(dtype)}
                made.append(measurement(task, name, tokens, "cpu_seconds", own, details))
                if name != "sdpa":
                    ratios = [a / b for a, b in zip(own, seconds["sdpa"], strict=True)]
                    made.append(measurement(task, name, tokens, "ratio", ratios, details))
            show(made, task, context, tokens)
    return made


def measurement(task: str, name: str, tokens: int, metric: str, values: list[float], details: dict) -> Measurement:
    """The median of the rounds, with its interval."""
    median, low, high = median_interval(values)
    return Measurement(task, name, tokens, metric, median, low, high, len(values), details)


def show(made: list[Measurement], task: str, context: int, tokens: int) -> None:
    """Print one task at one length: both sides and their ratio."""
    rows = {(m.method, m.metric): m for m in made if (m.task, m.length) == (task, tokens)}
    print(f"{task}, C {context}, T {tokens}: plain {1e3 * rows['sdpa', 'cpu_seconds'].value:.1f} ms")
    for (name, metric), m in rows.items():
        if metric == "ratio":
            own = rows[name, "cpu_seconds"].value
            print(f"  {name:12} {1e3 * own:9.1f} ms   {m.value:5.2f}x  [{m.low:.2f}, {m.high:.2f}]")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contexts", type=int, nargs="+", default=[512, 1024, 2048], help="C, in tokens; T is 4C")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON to write")
    settings = parser.parse_args()
    torch.manual_seed(settings.seed)
    torch.set_num_threads(settings.threads)
    with torch.no_grad():
        made = measure(settings.contexts, settings.rounds, "cpu", torch.float32)
    worst = max(m.value for m in made if (m.task, m.metric) == ("prefill", "ratio"))
    print(f"slowest prefill: {worst:.2f}x of plain attention; target: at most {TARGET}x")
    if settings.out:
        command = "python benchmarks/remapping.py " + " ".join(sys.argv[1:])
        meta = describe_run(command, settings.seed)
        meta |= {"threads": settings.threads, "target_ratio": TARGET, "worst_prefill_ratio": worst}
        Results("random q, k, v", settings.contexts[0], made, meta=meta).save(settings.out)


if __name__ == "__main__":
    main()
