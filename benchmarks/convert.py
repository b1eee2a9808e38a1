"""Time and memory of `drope.models.convert` against copying the files, on a synthetic Llama layout.

    python benchmarks/convert.py --gigabytes 4 --out results/benchmark-convert.json

Cases: dropping alone with copied files, folding β, adding QKNorm with gains of one, and with fitted gains (once: that
is a forward pass). `cp` and the cases take turns, and medians are compared; writing back to the disk (`sync`) counts in
all. Each conversion is a process of its own: the time of its imports stands apart (`startup_seconds`), and so does that
of converting a model of a few megabytes (`fixed_seconds`: proving the configuration on small random models), which
`seconds` includes. Peak memory is the largest resident set of the process that converts.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

CASES = ("drop", "beta", "qk_norm", "qk_norm_fitted")
ONCE = "qk_norm_fitted"  # minutes of arithmetic: its memory is judged, not its time
LIMIT_TIME, LIMIT_MEMORY = 1.3, 2e9


def write_layout(folder: Path, gigabytes: float, seed: int, small: bool = False) -> int:
    """A bfloat16 Llama of about this size, a shard for each layer (0.4 GB); returns the bytes written."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig

    hidden, inner, vocabulary = (64, 172, 32000) if small else (4096, 11008, 32000)
    heads = hidden // 32 if small else 32
    layer = 2 * (4 * hidden * hidden + 3 * hidden * inner)
    layers = max(1, round((gigabytes * 1e9 - 4 * vocabulary * hidden) / layer))
    config = LlamaConfig(
        hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers, vocab_size=vocabulary,
        num_attention_heads=heads, num_key_value_heads=heads, max_position_embeddings=4096, dtype="bfloat16",
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
    """Run one case in this process; seconds of imports and of the call, and the process's peak memory."""
    started = time.perf_counter()
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel  # noqa: F401

    from drope.models import convert as rewrite
    from drope.models.stream_norm import StreamedNorm

    startup = time.perf_counter() - started
    options: dict[str, object] = {}
    if case == "beta":
        options = {"beta": 1.2}
    if case == "qk_norm":
        options = {"qk_norm": StreamedNorm("ones")}
    if case == ONCE:
        ids = torch.randint(0, 32000, (4, 64), generator=torch.Generator().manual_seed(seed))
        options = {"qk_norm": StreamedNorm("fitted", [ids])}
    os.sync()
    started, used = time.perf_counter(), time.process_time()
    rewrite(source, out, target_length=16384, link=False, **options)  # type: ignore[arg-type]
    returned = time.perf_counter() - started
    os.sync()
    seconds = time.perf_counter() - started
    # Not ru_maxrss, which a process inherits from the one that started it.
    status = Path("/proc/self/status").read_text()
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    return {"seconds": seconds, "seconds_before_sync": returned, "startup_seconds": startup,
            "cpu_seconds": time.process_time() - used, "peak_bytes": 1024 * peak}  # fmt: skip


def copied(source: Path, out: Path) -> float:
    os.sync()
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
        base, small, out = Path(scratch) / "base", Path(scratch) / "small", Path(scratch) / "out"
        size = write_layout(base, given.gigabytes, given.seed)
        write_layout(small, 0, given.seed, small=True)
        runs: dict[str, list[dict[str, float]]] = {"cp": [], **{case: [] for case in CASES}}
        fixed: dict[str, list[dict[str, float]]] = {case: [] for case in CASES if case != ONCE}
        for turn in range(given.repeats):
            for case in runs:
                if case == "cp":
                    runs[case].append({"seconds": copied(base, out)})
                elif case != ONCE or not turn:
                    runs[case].append(measured(case, base, out, given.seed))
                if out.exists():
                    shutil.rmtree(out)
            for case, found in fixed.items():
                found.append(measured(case, small, out, given.seed))
                shutil.rmtree(out)
    result = summary(runs, fixed, size, given)
    text = json.dumps(result, indent=2)
    print(text)
    if given.out:
        given.out.write_text(text + "\n", encoding="utf-8")
    return 0 if result["passed"] else 1


def measured(case: str, source: Path, out: Path, seed: int) -> dict[str, float]:
    """One case in a process of its own."""
    command = [sys.executable, __file__, "--seed", str(seed), "--one", case, str(source), str(out)]
    started = time.perf_counter()
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1]) | {"process_seconds": time.perf_counter() - started}


def summary(
    runs: dict[str, list[dict[str, float]]], fixed: dict[str, list[dict[str, float]]], size: int,
    given: argparse.Namespace,
) -> dict[str, object]:  # fmt: skip
    from drope.models.save import versions

    def median(found: list[dict[str, float]], what: str = "seconds") -> float:
        return statistics.median(run[what] for run in found)

    copying = median(runs["cp"])
    timed = [case for case in CASES if case != ONCE]
    ratio = {case: median(runs[case]) / copying for case in timed}
    peak = {case: max(run["peak_bytes"] for run in runs[case]) for case in CASES}
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent)
    return {
        "benchmark": "convert",
        "command": f"python benchmarks/convert.py --gigabytes {given.gigabytes:g} --repeats {given.repeats}",
        "commit": commit.stdout.strip(),
        "seed": given.seed,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions() | {"python": platform.python_version()},
        "hardware": {"machine": platform.machine(), "cores": len(os.sched_getaffinity(0)),
                     "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")},
        "bytes": size,
        "median_seconds": {case: median(found) for case, found in runs.items()},
        "time_over_cp": ratio,
        "time_over_cp_without_fixed": {c: (median(runs[c]) - median(fixed[c])) / copying for c in timed},
        "process_over_cp": {case: median(runs[case], "process_seconds") / copying for case in timed},
        "fixed_seconds": {case: median(found) for case, found in fixed.items()},
        "startup_seconds": median([run for case in timed for run in runs[case]], "startup_seconds"),
        "peak_bytes": peak,
        "limits": {"time_over_cp": LIMIT_TIME, "peak_bytes": LIMIT_MEMORY, "timed": timed},
        "passed": all(ratio[c] <= LIMIT_TIME for c in timed) and all(peak[c] < LIMIT_MEMORY for c in CASES),
        "runs": runs,
        "fixed_runs": fixed,
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
