"""Speed and memory of a recalibration step: ours against the paper authors' recipe and a plain Trainer, in turns.

    python benchmarks/recalibration.py                         # a small model on a CPU, some minutes
    python benchmarks/recalibration.py --hidden 576 --layers 30 --context 2048 --precision bf16   # 135M, for a GPU

Variants, the same Llama shape, weights, batch and precision for all:

    ours                position-free Llama, no rotation computed, loss over chunks of logits, no gradient checkpointing
    ours-compiled       as ours with --compile: each layer through torch.compile (needs a C++ compiler on a CPU)
    ours-norotary       the same shape as SmolLM3 with no rotary layer
    ours-checkpointing  as ours, with gradient checkpointing: for when memory is what lacks
    authors             Trainer, multiplies by cos 1 and sin 0, joint QKNorm, gradient checkpointing, whole logits
    trainer             Trainer, plain fine-tuning: RoPE kept, whole logits, no gradient checkpointing

A round times every variant once, in a process of its own that stays alive; medians over rounds. Peak memory: on a GPU
the allocator's; on a CPU what a step allocates above what lives between steps, from torch's profiler.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

_LIVING = ExitStack()  # as long as the process
VARIANTS = ("ours", "ours-compiled", "ours-norotary", "ours-checkpointing", "authors", "trainer")


def build(variant: str, args: argparse.Namespace) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, SmolLM3Config

    from drope import models
    from drope.models.unrotated import unrotated
    from drope.training.compiled import compiled
    from drope.training.norms import add_joint_norm

    shape = {
        "vocab_size": args.vocabulary, "hidden_size": args.hidden, "intermediate_size": args.wide,
        "num_hidden_layers": args.layers, "num_attention_heads": args.heads, "num_key_value_heads": args.heads,
        "max_position_embeddings": args.context, "tie_word_embeddings": True, "bos_token_id": 0, "eos_token_id": 0,
        "pad_token_id": 0, "use_cache": False,
    }  # fmt: skip
    torch.manual_seed(0)
    if variant == "ours-norotary":
        config: Any = SmolLM3Config(**shape, no_rope_layers=[0] * args.layers)
    else:
        config = LlamaConfig(**shape)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).to(args.device)
    if variant in ("ours", "ours-compiled", "ours-checkpointing", "authors"):
        models.drop(model)
    if variant in ("ours", "ours-compiled", "ours-checkpointing"):
        _LIVING.enter_context(unrotated(model))  # as recalibration does
    if variant == "ours-compiled":
        _LIVING.enter_context(compiled(model))
    return add_joint_norm(model) if variant == "authors" else model


def step(variant: str, args: argparse.Namespace, folder: Path) -> Any:
    """A function that runs forward and backward over one micro batch, with its Trainer's own machinery."""
    import torch
    from transformers import Trainer, TrainingArguments

    from drope.training import RecalibrationConfig
    from drope.training.trainer import RecalibrationTrainer

    model = build(variant, args)
    arguments = TrainingArguments(
        output_dir=str(folder), use_cpu=args.device == "cpu", report_to="none", disable_tqdm=True,
        bf16=args.precision == "bf16" and not variant.startswith("ours"),
        activation_checkpointing=variant in ("authors", "ours-checkpointing"),
    )  # fmt: skip
    ids = torch.randint(args.vocabulary, (args.blocks, args.context), device=args.device)
    if variant.startswith("ours"):
        config = RecalibrationConfig(data="stdlib", tokens=10**6)
        autocast = torch.bfloat16 if args.precision == "bf16" else None
        trainer: Any = RecalibrationTrainer(
            model=model, args=arguments, config=config, teacher=None, autocast=autocast, run="benchmark"
        )
        batch = {"input_ids": ids, "trained": torch.ones_like(ids, dtype=torch.bool)}
        items: Any = torch.tensor(float(args.blocks * (args.context - 1)), device=args.device)
    else:
        trainer = Trainer(model=model, args=arguments)
        batch, items = {"input_ids": ids, "labels": ids}, None
    if arguments.activation_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = 1
    wrapped = trainer.accelerator.prepare_model(model) if args.device != "cpu" else model

    def run() -> None:
        trainer.training_step(wrapped, dict(batch), items)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()

    return run


def serve(variant: str, args: argparse.Namespace, line: Any) -> None:
    """Send the peak memory of one step; then, for each message, the seconds of one."""
    import torch

    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        run = step(variant, args, Path(folder))
        run()
        line.send(peak(run, args.device))
        while line.recv():
            if args.device != "cpu":
                torch.cuda.synchronize()
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            if args.device != "cpu":
                torch.cuda.synchronize()
            line.send(time.perf_counter() - wall if args.device != "cpu" else time.process_time() - cpu)


def peak(run: Any, device: str) -> int:
    """Bytes above what lives between steps (on a GPU: in all) at the peak of one step."""
    import torch

    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    now = most = 0
    records = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(records, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def measure(args: argparse.Namespace) -> dict[str, Any]:
    # Forked processes have everything imported already; CUDA cannot be forked.
    context: Any = multiprocessing.get_context("fork" if args.device == "cpu" else "spawn")
    if args.device == "cpu":
        import drope.training.trainer  # noqa: F401
    lines: dict[str, Any] = {}
    results: dict[str, Any] = {}
    for variant in args.variants:
        lines[variant], theirs = context.Pipe()
        context.Process(target=serve, args=(variant, args, theirs), daemon=True).start()
        theirs.close()  # so that the end of the process is the end of the line
        results[variant] = {"peak_bytes": lines[variant].recv(), "seconds": []}
    for _ in range(args.rounds):
        for variant, line in lines.items():
            line.send(True)
            results[variant]["seconds"].append(line.recv())
    for line in lines.values():
        line.send(False)
    tokens = args.blocks * args.context
    for found in results.values():
        found["median_seconds"] = statistics.median(found["seconds"])
        found["tokens_per_second"] = tokens / found["median_seconds"]
    first = results[args.variants[0]]
    for found in results.values():
        found["ours_is_faster_by"] = found["median_seconds"] / first["median_seconds"]
        found["our_peak_is"] = first["peak_bytes"] / found["peak_bytes"]
    return results


def ceiling(args: argparse.Namespace) -> dict[str, float]:
    """The matrix products of a step of ours (no attention scores), and how fast this machine does such a product.

    Seconds at that speed are the least that any implementation of this shape can take here.
    """
    import torch

    torch.set_num_threads(args.threads)
    tokens = args.blocks * args.context
    layer = 4 * args.hidden**2 + 3 * args.hidden * args.wide
    flops = 6.0 * tokens * (args.layers * layer + args.hidden * args.vocabulary)
    dtype = torch.bfloat16 if args.precision == "bf16" else torch.float32
    a = torch.randn(tokens, args.hidden, device=args.device, dtype=dtype)
    b = torch.randn(args.hidden, args.wide, device=args.device, dtype=dtype)
    product = 2.0 * tokens * args.hidden * args.wide
    out = torch.empty(tokens, args.wide, device=args.device, dtype=dtype)
    rates = []
    for _ in range(20):
        if args.device != "cpu":
            torch.cuda.synchronize()
        wall, cpu = time.perf_counter(), time.process_time()
        torch.mm(a, b, out=out)
        if args.device != "cpu":
            torch.cuda.synchronize()
        rates.append(product / (time.perf_counter() - wall if args.device != "cpu" else time.process_time() - cpu))
    rate = statistics.median(rates)
    return {"matrix_flops_of_a_step": flops, "flops_per_second": rate, "least_seconds": flops / rate}


def about(args: argparse.Namespace) -> dict[str, Any]:
    """What a number means nothing without."""
    from importlib.metadata import version

    import torch

    git = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False, cwd=Path(__file__).parent
    )
    settings = {k: v for k, v in vars(args).items() if k != "out"}
    hardware = torch.cuda.get_device_name() if args.device != "cpu" else f"{platform.machine()}, {args.threads} threads"
    return {
        "command": f"python benchmarks/recalibration.py {_flags()}",
        "commit": git.stdout.strip(), "seed": 0, "settings": settings, "hardware": hardware,
        "capability": torch.backends.cpu.get_cpu_capability(), "clock": "wall" if args.device != "cpu" else "CPU time",
        "versions": {name: version(name) for name in ("torch", "transformers", "accelerate")},
    }  # fmt: skip


def _flags() -> str:
    """The command line without --out, which is a path of somebody's machine."""
    words = sys.argv[1:]
    if "--out" in words:
        at = words.index("--out")
        words = words[:at] + words[at + 2 :]
    return " ".join(words)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {
        "hidden": 192, "wide": 512, "layers": 4, "heads": 3, "vocabulary": 16384, "context": 512, "blocks": 4,
        "rounds": 3, "threads": 1,
    }.items():  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--precision", choices=("float32", "bf16"), default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    results = measure(args)
    found = {"benchmark": "recalibration", **about(args), "results": results, "ceiling": ceiling(args)}
    if args.out:
        args.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    for name, row in found["results"].items():
        speed = f"{row['tokens_per_second']:10,.0f} tokens/s   {row['peak_bytes'] / 2**20:8,.0f} MiB at the peak"
        print(
            f"{name:18} {speed}   ours: {row['ours_is_faster_by']:.2f}x as fast, {row['our_peak_is']:.2f} of the memory"
        )
    share = found["ceiling"]["least_seconds"] / results[args.variants[0]]["median_seconds"]
    print(f"matrix products at this machine's rate would take {share:.0%} of the time of {args.variants[0]}")


if __name__ == "__main__":
    main()
