"""Time and memory of `drope.models.convert` against copying the files, on a synthetic Llama layout.

    python benchmarks/convert.py --gigabytes 4 --out results/convert.json

Cases: dropping alone with copied files, folding β, adding QKNorm with fitted gains; `cp` before and after them, for the
spread of the disk. Peak memory is the largest resident set of the process that converts.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CASES = ("drop", "beta", "qk_norm")
LIMIT_TIME, LIMIT_MEMORY = 1.3, 2e9


def write_layout(folder: Path, gigabytes: float, seed: int) -> int:
    """A bfloat16 Llama of about this size in shards of 0.5 GB; returns the bytes written."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig

    hidden, inner, vocabulary = 4096, 11008, 32000
    layer = 2 * (4 * hidden * hidden + 3 * hidden * inner)
    layers = max(1, round((gigabytes * 1e9 - 4 * vocabulary * hidden) / layer))
    config = LlamaConfig(
        hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers, vocab_size=vocabulary,
        num_attention_heads=32, num_key_value_heads=32, max_position_embeddings=4096, dtype="bfloat16",
        architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    generator = torch.Generator().manual_seed(seed)
    names = {"model.embed_tokens.weight": (vocabulary, hidden), "lm_head.weight": (vocabulary, hidden),
             "model.norm.weight": (hidden,)}  # fmt: skip
    shards: list[dict[str, tuple[int, ...]]] = [names]
    for i in range(layers):
        at = f"model.layers.{i}."
        shards.append(
            {f"{at}self_attn.{p}_proj.weight": (hidden, hidden) for p in "qkvo"}
            | {f"{at}mlp.{p}_proj.weight": (inner, hidden) for p in ("gate", "up")}
            | {f"{at}mlp.down_proj.weight": (hidden, inner)}
            | {f"{at}{n}_layernorm.weight": (hidden,) for n in ("input", "post_attention")}
        )
    weight_map: dict[str, str] = {}
    total = 0
    for i, shapes in enumerate(shards):
        tensors = {}
        for name, shape in shapes.items():
            one = len(shape) == 1
            block = torch.ones(shape) if one else torch.randn(1024, shape[1], generator=generator) * 0.02
            tensors[name] = (block if one else block.repeat(-(-shape[0] // 1024), 1)[: shape[0]]).to(torch.bfloat16)
        file = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
        total += (folder / file).stat().st_size
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return total


def convert(case: str, source: Path, out: Path, seed: int) -> dict[str, float]:
    """Run one case in this process; seconds of the call alone, and the process's peak memory."""
    import torch

    from drope.models import convert as rewrite
    from drope.models.stream_norm import StreamedNorm

    options: dict[str, object] = {}
    if case == "beta":
        options = {"beta": 1.2}
    if case == "qk_norm":
        ids = torch.randint(0, 32000, (4, 64), generator=torch.Generator().manual_seed(seed))
        options = {"qk_norm": StreamedNorm("fitted", [ids])}
    started, used = time.perf_counter(), time.process_time()
    rewrite(source, out, target_length=16384, link=False, **options)  # type: ignore[arg-type]
    os.sync()
    seconds = time.perf_counter() - started
    # Not ru_maxrss, which a process inherits from the one that started it.
    status = Path("/proc/self/status").read_text()
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    return {"seconds": seconds, "cpu_seconds": time.process_time() - used, "peak_bytes": 1024 * peak}


def copied(source: Path, out: Path) -> float:
    started = time.perf_counter()
    subprocess.run(["cp", "-r", str(source), str(out)], check=True)
    os.sync()
    return time.perf_counter() - started


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scratch", type=Path, help="where to write; a temporary folder by default")
    parser.add_argument("--out", type=Path, help="JSON with the results")
    parser.add_argument("--one", nargs=3, metavar=("CASE", "SOURCE", "TARGET"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        case, source, target = given.one
        print(json.dumps(convert(case, Path(source), Path(target), given.seed)))
        return 0
    with tempfile.TemporaryDirectory(dir=given.scratch) as scratch:
        base, out = Path(scratch) / "base", Path(scratch) / "out"
        size = write_layout(base, given.gigabytes, given.seed)
        runs: dict[str, list[dict[str, float]]] = {"cp": [], **{case: [] for case in CASES}}
        for turn in range(given.repeats):
            for case in runs:
                if case == "qk_norm" and turn:
                    continue  # minutes of arithmetic, and only its memory is judged
                if case == "cp":
                    runs[case].append({"seconds": copied(base, out)})
                else:
                    command = [sys.executable, __file__, "--seed", str(given.seed), "--one", case, str(base), str(out)]
                    done = subprocess.run(command, check=True, capture_output=True, text=True)
                    runs[case].append(json.loads(done.stdout.splitlines()[-1]))
                shutil.rmtree(out)
    result = summary(runs, size, given)
    text = json.dumps(result, indent=2)
    print(text)
    if given.out:
        given.out.write_text(text + "\n", encoding="utf-8")
    return 0 if result["passed"] else 1


def summary(runs: dict[str, list[dict[str, float]]], size: int, given: argparse.Namespace) -> dict[str, object]:
    from drope.models.save import versions

    best = {case: min(run["seconds"] for run in found) for case, found in runs.items()}
    peak = {case: max(run["peak_bytes"] for run in runs[case]) for case in CASES}
    ratio = {case: best[case] / best["cp"] for case in CASES}
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent)
    timed = [case for case in CASES if case != "qk_norm"]  # fitting reads the model and computes: no copy
    return {
        "benchmark": "convert",
        "command": f"python benchmarks/convert.py --gigabytes {given.gigabytes:g} --repeats {given.repeats}",
        "commit": commit.stdout.strip(),
        "seed": given.seed,
        "versions": versions() | {"python": platform.python_version()},
        "hardware": {"machine": platform.machine(), "cores": len(os.sched_getaffinity(0)),
                     "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")},
        "bytes": size,
        "runs": runs,
        "best_seconds": best,
        "time_over_cp": ratio,
        "peak_bytes": peak,
        "limits": {"time_over_cp": LIMIT_TIME, "peak_bytes": LIMIT_MEMORY, "timed": timed},
        "passed": all(ratio[c] <= LIMIT_TIME for c in timed) and all(peak[c] < LIMIT_MEMORY for c in CASES),
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
