"""Invented results for trying out the report. Nothing here was measured."""

from __future__ import annotations

import math
import random

from drope.results import Measurement, Results, wilson

CONTEXT = 256
BASE = {"drope": (0.93, 0.27), "control": (0.95, 2.4), "yarn": (0.96, 1.1), "ntk": (0.96, 1.3),
        "dynamic_ntk": (0.96, 1.2), "pi": (0.96, 1.9), "rope": (0.96, 2.6), "nope": (0.02, 1.0)}  # fmt: skip
TASKS = {"single": 1.0, "multi_query": 0.9, "multi_key": 0.93, "multi_value": 0.88}


def synthetic(
    model: str = "SYNTHETIC example, not a measurement", methods=tuple(BASE), n: int = 500, seed: int = 0
) -> Results:
    """A whole run in which DroPE wins beyond its context and pays a little within it."""
    rng = random.Random(seed)
    out = Results(model, CONTEXT)
    lengths = [CONTEXT * k for k in (1, 2, 4, 8)]
    for task, ease in TASKS.items():
        for method in methods:
            start, fall = BASE[method]
            for length in lengths:
                share = start * ease * math.exp(-fall * math.log2(length / CONTEXT))
                hits = sum(rng.random() < share for _ in range(n))
                out.measurements.append(Measurement(task, method, length, "success", hits / n, *wilson(hits, n), n))
                for depth in [i / 10 for i in range(11)] if task == "single" else []:
                    k = max(1, n // 11)
                    near = share if length == CONTEXT else min(1.0, share * (0.7 + 0.6 * depth))
                    hits = sum(rng.random() < near for _ in range(k))
                    out.measurements.append(
                        Measurement(task, method, length, "success", hits / k, *wilson(hits, k), k, {"depth": depth})
                    )
    for length in lengths:
        for method in methods:
            for start in range(0, length, 64):
                beyond = max(0.0, math.log2(max(1, start + 32) / CONTEXT))
                slope = {"drope": 0.03, "nope": 0.9, "rope": 1.7, "control": 1.5, "pi": 0.5, "yarn": 0.12}.get(
                    method, 0.25
                )
                floor = {
                    "drope": 3.05,
                    "control": 2.95,
                    "nope": 6.2,
                    "pi": 3.0 + 0.2 * math.log2(length / CONTEXT),
                }.get(method, 3.0)
                loss = floor + 2.2 / math.sqrt(1 + start / 12) + slope * beyond + rng.gauss(0, 0.015)
                half = 0.03 + 0.01 * beyond
                out.measurements.append(
                    Measurement("perplexity_by_position", method, length, "loss", loss, loss - half, loss + half, 64,
                                {"position_start": start, "position_end": start + 64})
                )  # fmt: skip
    for run, high, floor in (("drope", 9.4, 3.06), ("control", 3.2, 2.96)):
        for step in range(0, 400):
            tokens = step * 16384
            loss = floor + (high - floor) / (1 + tokens / 150_000) ** 0.9 + rng.gauss(0, 0.04)
            row = {"run": run, "tokens": tokens, "loss": round(loss, 4)}
            if step % 50 == 0:
                row["eval_loss"] = round(loss + 0.02, 4)
            out.recovery.append(row)
    for k in (1, 2, 4, 8):
        beta = 1 + 0.16 * math.log(k) + rng.gauss(0, 0.008)
        out.temperature.append(
            {
                "length": CONTEXT * k,
                "beta": round(beta, 4),
                "loss": 3.1 + 0.02 * k,
                "loss_without": 3.1 + 0.05 * k,
                "a": 0.161,
                "beta_se": 0.012,
                "gain_se": 0.004,
            }
        )
    out.meta = {
        "command": "drope extend SYNTHETIC --data stdlib --tokens 6.5M --to 4x --out nowhere",
        "commit": None, "seed": seed, "versions": {"python": "3.11", "torch": "0.0"},
        "hardware": {"cpu": "imagined", "cores": 2},
        "created": "2000-01-01T00:00:00+00:00", "source": "synthetic", "target_length": 4 * CONTEXT,
        "notes": ["These numbers are invented, to try out the report."],
        "paired": [{"task": "multi_query", "length": 512 * k, "method": "yarn", "reference": "drope", "n": n,
                    "method_only": 20, "reference_only": 190, "p": p} for k, p in ((1, 0.0312), (2, 1.2e-9))],
        "stages": {"recalibrate": {"seconds": 412.1, "tokens_per_second": 15892.0}, "temperature": {"seconds": 31.0}},
    }  # fmt: skip
    return out
