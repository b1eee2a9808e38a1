"""drope's needle runner against lm-evaluation-harness: python benchmarks/needles.py --model MODEL --out results/x.json

The harness's own RULER samples (`niah_single_1`, made by its code with this model's tokenizer) are answered by its HFLM
and by `drope.evaluation`, in turns, on the same model object, batch size and answer budget of 128 tokens. Timed from
prompts as text to outputs as text; the making of samples and the loading of the model are not. One sample by either
warms up; the file is written after each round, so that a run cut short keeps its whole rounds.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from timing import interleaved, median_interval

from drope.evaluation.needles import Decoding, run_trials
from drope.evaluation.tokens import Encoder
from drope.evaluation.trials import Trial
from drope.models import apply, load
from drope.positions import get
from drope.results import Measurement, Results, describe_run, wilson

BUDGET, TARGET = 128, 3.0


def samples(tokenizer, length: int, count: int, seed: int) -> list[dict]:
    """The harness's own, by its own code."""
    from lm_eval.tasks.ruler import niah_utils, prepare_niah

    random.seed(seed)
    return prepare_niah.generate_samples(
        prepare_niah.get_haystack(type_haystack="repeat"), max_seq_length=length, template=niah_utils.TEMPLATE,
        type_haystack="repeat", type_needle_k="words", type_needle_v="numbers", num_samples=count, TOKENIZER=tokenizer,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bundled", help="hub id, folder, GGUF file or bundled")
    parser.add_argument("--method", default="rope", help="positional method, for both sides")
    parser.add_argument("--length", type=int, default=1024, help="tokens of prompt and answer")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--out", type=Path, help="JSON to write")
    settings = parser.parse_args()
    torch.set_num_threads(settings.threads)

    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks.ruler.common_utils import postprocess_pred, string_match_all

    loaded = load(settings.model)
    docs = samples(loaded.tokenizer, settings.length, settings.samples, settings.seed)
    prompts = [f"{d['input']} {d['gen_prefix']}" for d in docs]
    lm = HFLM(
        pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=settings.batch, max_length=settings.length
    )  # fmt: skip
    encode = Encoder(loaded.tokenizer)
    outputs: dict[str, list[str]] = {}

    def harness(count: int = settings.samples) -> None:
        wanted = {"do_sample": False, "temperature": 0.0, "max_gen_toks": BUDGET, "until": []}
        requests = [
            Instance(request_type="generate_until", doc=d, arguments=(p, dict(wanted)), idx=0)
            for d, p in zip(docs[:count], prompts, strict=False)
        ]
        outputs["lm_eval"] = lm.generate_until(requests, disable_tqdm=True)

    def drope(count: int = settings.samples) -> None:
        trials = [
            Trial("niah_single_1", settings.length, 0, i, p, tuple(d["outputs"]), (), None, BUDGET,
                  np.asarray(encode(p), dtype=np.int32))
            for i, (d, p) in enumerate(zip(docs[:count], prompts, strict=False))
        ]  # fmt: skip
        with tempfile.TemporaryDirectory() as scratch:
            batch = Decoding(batch_tokens=settings.batch * settings.length)
            records = run_trials(loaded.model, loaded.tokenizer, trials, Path(scratch) / "log.jsonl", batch)
        outputs["drope"] = [r["output"] for r in records]

    def warm_up() -> None:
        harness(1)
        drope(1)

    def report(seconds: dict[str, list[float]]) -> None:
        made = []
        scores = {
            name: [string_match_all([p], [d["outputs"]]) for p, d in zip(postprocess_pred(out), docs, strict=True)]
            for name, out in outputs.items()
        }
        rounds = len(seconds["drope"])
        for name, spent in seconds.items():
            rate, low, high = median_interval([settings.samples / s for s in spent])
            details = {"batch": settings.batch, "samples": settings.samples, "clock": "cpu seconds of the process"}
            made.append(Measurement("niah_single_1", name, settings.length, "samples_per_second", rate, low, high,
                                    rounds, details))  # fmt: skip
            hits = sum(scores[name])
            interval = wilson(hits, len(docs))
            made.append(
                Measurement("niah_single_1", name, settings.length, "success", hits / len(docs), *interval, len(docs))
            )
            print(f"{name:8} {rate:.3f} samples/s  success {hits / len(docs):.2f}")
        ratios = [a / b for a, b in zip(seconds["lm_eval"], seconds["drope"], strict=True)]
        ratio, low, high = median_interval(ratios)
        same = sum(a == b for a, b in zip(scores["lm_eval"], scores["drope"], strict=True))
        made.append(Measurement("niah_single_1", "drope", settings.length, "ratio", ratio, low, high, rounds))
        print(
            f"{rounds} rounds, drope over lm_eval: {ratio:.2f}x [{low:.2f}, {high:.2f}], target {TARGET}x; "
            f"{same}/{len(docs)} scores equal",
            flush=True,
        )
        if settings.out:
            command = "python benchmarks/needles.py " + " ".join(
                Path(a).name if "/" in a else a for a in sys.argv[1:]
            )  # fmt: skip
            from importlib.metadata import version

            meta = describe_run(command, settings.seed)
            meta["versions"]["lm_eval"] = version("lm_eval")
            meta |= {"threads": settings.threads, "target_ratio": TARGET, "ratio": ratio,
                     "same_scores": [same, len(docs)], "seconds": seconds}  # fmt: skip
            Results(Path(settings.model).name, settings.length, made, meta=meta).save(settings.out)

    with apply(loaded.model, get(settings.method), settings.length):
        interleaved({"lm_eval": harness, "drope": drope}, settings.rounds, warm_up, report)


if __name__ == "__main__":
    main()
