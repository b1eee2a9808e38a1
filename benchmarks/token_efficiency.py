"""How many tokens each way of recalibrating needs, on the bundled model: every lever alone, and together.

    python benchmarks/token_efficiency.py --out results/token-efficiency.json    # every lever, one seed
    python benchmarks/token_efficiency.py --out ... --levers control paper muon --seeds 0 1 2
    python benchmarks/token_efficiency.py --out ... --levers --plot docs/token_efficiency.svg --page docs/x.md

The last makes the curves and the table of the page from the file and trains nothing. On several cores: a process and
a file for each, then `--levers --add FILE ...`.

Every finished run is kept in the file at once, and none is run twice: the same command goes on after an interruption.
All runs of a seed see the same blocks. A run's held-out loss is measured every tenth of it, on the same blocks for all
runs of a seed; what is recovered is the share of the gap between the dropped model and the control (RoPE kept, trained
on the same tokens at the paper's recipe's rate). At the end, at 1x, 2x and 4x the context: the loss of the answers to
needle questions (a loss moves long before whole answers are right), and with --trials the share that is answered.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

CONTEXT, SHARES, EVAL_BLOCKS = 128, (0.95, 0.99), 64
TASKS = ("single", "multi_key", "multi_query", "multi_value")
BETAS = (1.0, 1.25, 1.5)
_BEGIN, _END = "<!-- made from the results -->", "<!-- end -->"
RATES = {"adamw": 2e-3, "muon": 8e-3}  # the best of those tried, which are in the file
MATCHING_RATE = 4e-3  # AdamW's, where hidden states are matched with weight 10 throughout: 2e-3 and 8e-3 are worse

#: Settings of `RecalibrationConfig` that differ from the paper's (AdamW, cosine, nothing else). `norm` is QKNorm.
LEVERS: dict[str, dict[str, Any]] = {
    "control": {},
    "control muon": {"optimizer": "muon"},
    "paper": {},
    "distill": {"distill": 0.7},
    "match": {"match": 0.5},
    "fade lowest_first": {"fade": "lowest_first"},
    "fade linear": {"fade": "linear"},
    "fade layers_top_first": {"fade": "layers_top_first"},
    "muon": {"optimizer": "muon"},
    "virtual length": {"virtual_length": 16.0},
    "attention only": {"train": "attention"},
    "lora": {"lora": 16},
    "norm per head": {"norm": "per head"},
    "norm joint": {"norm": "qk"},
    "norm of q": {"norm": "q"},
}
_ALL = {"optimizer": "muon", "distill": 0.7}
LEVERS |= {
    "muon + distill": _ALL,
    "muon + match": {"optimizer": "muon", "match": 0.5},
    "muon + distill + fade": _ALL | {"fade": "lowest_first"},
    "muon + distill + match": _ALL | {"match": 0.5},
    "muon + distill + match + virtual length": _ALL | {"match": 0.5, "virtual_length": 16.0},
    "muon + match + virtual length": {"optimizer": "muon", "match": 0.5, "virtual_length": 16.0},
    "distill + match": {"distill": 0.7, "match": 0.5},
    "muon + norm per head": {"optimizer": "muon", "norm": "per head"},
    "muon + distill + virtual length": _ALL | {"virtual_length": 16.0},
    "muon + virtual length": {"optimizer": "muon", "virtual_length": 16.0},
    "match x10": {"match": 0.5, "match_weight": 10.0},
    "match x10 throughout": {"match": 1.0, "match_weight": 10.0},
    "distill + match x10": {"distill": 0.7, "match": 0.5, "match_weight": 10.0},
    "distill + match x10 throughout": {"distill": 0.7, "match": 1.0, "match_weight": 10.0},
    "distill + match x30 throughout": {"distill": 0.7, "match": 1.0, "match_weight": 30.0},
    "muon + distill + match x10 throughout": _ALL | {"match": 1.0, "match_weight": 10.0},
    "muon + distill + match x10": _ALL | {"match": 0.5, "match_weight": 10.0},
    "muon + match x10 throughout": {"optimizer": "muon", "match": 1.0, "match_weight": 10.0},
    "muon + distill + match x10 + virtual length": _ALL | {"match": 1.0, "match_weight": 10.0, "virtual_length": 16.0},
    "distill + match attention x10 throughout": {
        "distill": 0.7,
        "match": 1.0,
        "match_weight": 10.0,
        "match_states": "attention",
    },
    "distill + match both x10 throughout": {
        "distill": 0.7,
        "match": 1.0,
        "match_weight": 10.0,
        "match_states": "both",
    },
    "muon + distill + match both x10 throughout": _ALL
    | {
        "match": 1.0,
        "match_weight": 10.0,
        "match_states": "both",
    },
    "distill alone": {"distill": 1.0},
    "muon + distill alone": {"optimizer": "muon", "distill": 1.0},
}


def train(lever: str, seed: int, tokens: int, rate: float, args: argparse.Namespace) -> dict[str, Any]:
    """One run: its curve of held-out losses, and what the model can do afterwards."""
    from drope import models
    from drope.training import RecalibrationConfig, recalibrate

    loaded = models.load(args.model)
    changes = dict(LEVERS[lever])
    norm = changes.pop("norm", None)
    teacher = models.load(args.model).model if changes.get("distill") or changes.get("match") else None
    config = RecalibrationConfig(
        data=args.data, tokens=tokens, batch_tokens=args.batch_tokens, micro_batch=args.batch_tokens // CONTEXT,
        learning_rate=rate, eval_blocks=EVAL_BLOCKS, eval_every=tokens // 10, save_every=tokens, precision="float32",
        spike=0.0, seed=seed, **changes,
    )  # fmt: skip
    model = normed(loaded, norm, args.data)
    before = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        done = recalibrate(
            model, loaded.tokenizer, config, folder, control=lever.startswith("control"), teacher=teacher
        )
    seconds = time.process_time() - before
    curve = [[row["tokens"], row["eval_loss"]] for row in done.history if row.get("eval_loss") is not None]
    after = done.settings["fade_steps"] * args.batch_tokens  # until then the rotation is still there in part
    return {
        "lever": lever, "seed": seed, "tokens": done.tokens_seen, "learning_rate": rate, "changes": LEVERS[lever],
        "steps": done.steps, "faded_by": after, "cpu_seconds": round(seconds, 1), "curve": curve,
        "eval_loss": curve[-1][1], **measure(done.model, loaded.tokenizer, args, rotates=lever.startswith("control")),
    }  # fmt: skip


def normed(loaded: Any, norm: str | None, data: str) -> Any:
    from drope import models
    from drope.commands.checkpoints import add_norm
    from drope.training.norms import add_joint_norm

    if norm is None:
        return loaded.model
    model = models.drop(loaded.model)
    if norm == "per head":
        return add_norm(model, loaded.tokenizer, CONTEXT, "fitted", data, 8192)[0]
    return add_joint_norm(model, norm)  # type: ignore[arg-type]


def measure(model: Any, tokenizer: Any, args: argparse.Namespace, rotates: bool) -> dict[str, Any]:
    """Needle questions by length: loss of the answers (with each β), share answered (β = 1); prose at 4x."""
    from drope.data.haystack import haystack
    from drope.evaluation import EvaluationConfig, evaluate, get_task
    from drope.evaluation.losses import evaluating, temperature_at
    from drope.evaluation.run import heldout_texts
    from drope.evaluation.samples import answer_samples, text_samples
    from drope.evaluation.trials import Trials
    from drope.positions import get

    lengths = [CONTEXT, 2 * CONTEXT, 4 * CONTEXT]
    tasks = [get_task(t, 2) for t in TASKS]
    trials = Trials(tokenizer, haystack("stdlib:heldout"), seed=1000)
    answers: dict[str, dict[str, float]] = {}
    with evaluating(model):
        for length in lengths:
            samples = answer_samples(trials, tasks, length, args.samples, batch_tokens=8192)
            for beta in BETAS[:1] if rotates or length == CONTEXT else BETAS:
                with temperature_at(model, beta):
                    row = answers.setdefault(str(length), {})
                    row[str(beta)] = statistics.fmean(samples.losses(model))
        prose = text_samples(tokenizer, heldout_texts("stdlib:heldout"), lengths[-1], 8, batch_tokens=8192)
        far = statistics.fmean(prose.losses(model))
    if not args.trials:
        return {"answer_loss": answers, "prose_loss_4x": far}
    asked = EvaluationConfig(tasks=TASKS, lengths=lengths, trials=args.trials, depths=(0.1, 0.5, 0.9), documents=0)
    found = evaluate(model, tokenizer, asked, method=get("rope" if rotates else "drope"))
    success = {
        str(length): {
            m.task: [m.value, m.n]
            for m in found
            if m.metric == "success" and m.length == length and not {"depth", "unit", "place"} & set(m.details)
        }
        for length in lengths
    }
    return {"answer_loss": answers, "prose_loss_4x": far, "success": success}


def identity(run: dict[str, Any]) -> tuple[Any, ...]:
    return run["lever"], run["seed"], run["tokens"], run["learning_rate"]


def gap(run: dict[str, Any], runs: list[dict[str, Any]]) -> tuple[float, float] | None:
    """Losses of the dropped model before training and of the control after it, of the same seed.

    The control is that of the same tokens, or else the longest: RoPE kept, more tokens hardly move it.
    """
    dropped = next((r for r in runs if (r["lever"], r["seed"]) == ("paper", run["seed"])), None)
    longest = max((r for r in runs if (r["lever"], r["seed"]) == ("control", run["seed"])),
                  key=lambda r: r["tokens"], default=None)  # fmt: skip
    control = same_as(run, "control", runs) or longest
    return (dropped["curve"][0][1], control["eval_loss"]) if control and dropped else None


def same_as(run: dict[str, Any], lever: str, runs: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The run of another lever, at its own rate, with the same seed and tokens."""
    rate = rate_of(lever)
    for r in runs:
        if identity(r) == (lever, run["seed"], run["tokens"], rate):
            return r
    return None


def rate_of(lever: str) -> float:
    changes = LEVERS[lever]
    optimizer = changes.get("optimizer", "adamw")
    if optimizer == "adamw" and changes.get("match") == 1 and changes.get("match_weight") == 10:
        return MATCHING_RATE
    return RATES[optimizer]


def tokens_until(run: dict[str, Any], loss: float) -> float | None:
    """Tokens after which the held-out loss stays at or below `loss`, between measurements by a straight line."""
    curve = [point for point in run["curve"] if point[0] >= run["faded_by"]]
    found: float | None = None
    for (a, high), (b, low) in zip(curve, curve[1:], strict=False):
        if low > loss:
            found = None
        elif high > loss:
            found = a + (b - a) * (high - loss) / (high - low)
    return found


def matched(run: dict[str, Any], runs: list[dict[str, Any]]) -> int | None:
    """Tokens of the longest run of the paper's recipe, same seed, whose loss at the end this run's end is not above.

    Each is at the end of its own schedule, so this is the fair comparison of amounts. Of several rates the best counts.
    """
    best: dict[int, float] = {}
    for r in runs:
        if (r["lever"], r["seed"]) == ("paper", run["seed"]):
            best[r["tokens"]] = min(r["eval_loss"], best.get(r["tokens"], r["eval_loss"]))
    return max((tokens for tokens, loss in best.items() if run["eval_loss"] <= loss), default=None)


def summarise(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each lever and length of run: means over seeds, with each seed's own value."""
    rows = []
    for what in dict.fromkeys((r["lever"], r["tokens"], r["learning_rate"]) for r in runs):
        mine = [r for r in runs if (r["lever"], r["tokens"], r["learning_rate"]) == what]
        row: dict[str, Any] = dict(zip(("lever", "tokens", "learning_rate"), what, strict=True))
        row["seeds"] = [r["seed"] for r in mine]
        row["eval_loss"] = [r["eval_loss"] for r in mine]
        gaps = [gap(r, runs) for r in mine]
        row["recovered"] = [(g[0] - r["eval_loss"]) / (g[0] - g[1]) if g else None
                            for g, r in zip(gaps, mine, strict=True)]  # fmt: skip
        for share in SHARES:
            row[f"tokens_to_{share:.0%}"] = [
                tokens_until(r, g[0] - share * (g[0] - g[1])) if g else None for g, r in zip(gaps, mine, strict=True)
            ]
        papers = [same_as(r, "paper", runs) for r in mine]
        until = [tokens_until(r, p["eval_loss"]) if p else None for r, p in zip(mine, papers, strict=True)]
        row["tokens_to_the_papers_loss"] = until
        row["share_of_the_papers_tokens"] = [t / row["tokens"] if t is not None else None for t in until]
        row["paper_tokens_matched"] = [matched(r, runs) for r in mine]
        for length in mine[0]["answer_loss"]:
            row[f"answer_loss_{length}"] = [min(r["answer_loss"][length].values()) for r in mine]
            row[f"success_{length}"] = [mean_success(r, length) for r in mine]
        row["prose_loss_4x"] = [r["prose_loss_4x"] for r in mine]
        rows.append(row)
    return rows


def mean_success(run: dict[str, Any], length: str) -> float | None:
    """The mean over tasks; None where no questions were asked."""
    return statistics.fmean(v for v, _ in run["success"][length].values()) if "success" in run else None


def save(path: Path, found: dict[str, Any]) -> None:
    from drope.files import write_json

    write_json(path, found | {"summary": summarise(found["runs"])})


def table(found: dict[str, Any]) -> str:
    """The summary in Markdown: means over seeds, and how far the seeds are apart."""

    def show(values: list[float | None], form: str) -> str:
        there = [v for v in values if v is not None]
        if not there:
            return "—"
        missing = f" ({len(there)} of {len(values)})" if len(there) < len(values) else ""
        apart = f" ± {format((max(there) - min(there)) / 2, form)}" if len(there) > 1 else ""
        return format(statistics.fmean(there), form) + apart + missing

    columns = [
        ("held-out loss", "eval_loss", ".3f"), ("recovered", "recovered", ".0%"),
        ("tokens to 95%", "tokens_to_95%", ",.0f"), ("tokens to 99%", "tokens_to_99%", ",.0f"),
        ("share of the paper's tokens", "share_of_the_papers_tokens", ".2f"),
        ("as good as the paper's with", "paper_tokens_matched", ",.0f"),
        ("answers 1x", "answer_loss_128", ".2f"), ("2x", "answer_loss_256", ".2f"), ("4x", "answer_loss_512", ".2f"),
        ("answered 1x", "success_128", ".2f"), ("2x", "success_256", ".2f"), ("4x", "success_512", ".2f"),
    ]  # fmt: skip
    columns = [c for c in columns if any(v is not None for row in found["summary"] for v in row[c[1]])]
    lines = ["| lever | rate | tokens | seeds | " + " | ".join(title for title, *_ in columns) + " |"]
    lines.append("|---" * (len(columns) + 4) + "|")
    for row in sorted(found["summary"], key=lambda r: (r["tokens"], statistics.fmean(r["eval_loss"]))):
        cells = [row["lever"], f"{row['learning_rate']:g}", f"{row['tokens']:,}", str(len(row["seeds"]))]
        lines.append("| " + " | ".join(cells + [show(row[key], form) for _, key, form in columns]) + " |")
    return "\n".join(lines)


def fill(page: Path, found: dict[str, Any]) -> None:
    """Put the table between the page's marks."""
    head, rest = page.read_text(encoding="utf-8").split(_BEGIN)
    tail = rest.split(_END)[1]
    page.write_text(f"{head}{_BEGIN}\n{table(found)}\n{_END}{tail}", encoding="utf-8")


def plot(found: dict[str, Any], path: Path) -> None:
    """Held-out loss over tokens, a line for each lever and length of run, its seeds' mean; and the loss of answers."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot as plt

    matplotlib.rcParams["svg.hashsalt"] = "drope"
    rows = [row for row in found["summary"] if row["learning_rate"] == rate_of(row["lever"])]
    rows.sort(key=lambda row: (row["tokens"], statistics.fmean(row["eval_loss"])))
    lengths = sorted({row["tokens"] for row in rows})
    figure, (axis, bars) = plt.subplots(1, 2, figsize=(13, 5.5))
    names, curves = [], []
    for i, row in enumerate(rows):
        of = (row["lever"], row["tokens"], row["learning_rate"])
        mine = [r["curve"] for r in found["runs"] if (r["lever"], r["tokens"], r["learning_rate"]) == of]
        tokens = [t / 1e6 for t, _ in mine[0]]
        losses = [statistics.fmean(c[k][1] for c in mine) for k in range(len(tokens))]
        names.append(f"{row['lever']}, {row['tokens'] / 1e6:.2g}M ({len(mine)})")
        curves.append(losses)
        shade = "-" if row["tokens"] == lengths[-1] else "--"
        style: dict[str, Any] = {"color": "black" if row["lever"] == "paper" else "gray", "linewidth": 2}
        if row["lever"] not in ("control", "paper"):
            style = {"color": plt.get_cmap("tab20")(i % 20), "linewidth": 1.4}
        axis.plot(tokens, losses, shade, label=names[-1], **style)
    least = min(map(min, curves))
    axis.set(xlabel="million tokens", ylabel="held-out loss (nats per token)", ylim=(least - 0.05, least + 1.8),
             title="In-range loss along recalibration (number of seeds)")  # fmt: skip
    axis.legend(fontsize=7)
    for i, key in enumerate(key for key in rows[0] if key.startswith("answer_loss_")):
        means = [statistics.fmean(row[key]) for row in rows]
        bars.barh([k + 0.27 * (1 - i) for k in range(len(rows))], means, 0.25,
                  label=f"{int(key.removeprefix('answer_loss_')) // CONTEXT}x")  # fmt: skip
    bars.set_yticks(range(len(rows)), names, fontsize=7)
    bars.invert_yaxis()
    bars.set(xlabel="loss of needle answers at the end (nats per token)", title="Retrieval in and beyond the context")
    bars.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--data", default="episodes=0.85+stdlib=0.15")
    parser.add_argument("--levers", nargs="*", choices=list(LEVERS), default=list(LEVERS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--tokens", type=int, default=96 * 1024)
    parser.add_argument("--batch-tokens", type=int, default=1024)
    parser.add_argument("--learning-rate", type=float, help="instead of the lever's own")
    parser.add_argument("--trials", type=int, default=0, help="needle questions a task and length")
    parser.add_argument("--samples", type=int, default=16, help="questions whose answers' loss is measured, a length")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--add", nargs="+", type=Path, default=[], help="files of the same settings, to take runs from")
    parser.add_argument("--plot", type=Path, help="SVG of the curves to write")
    parser.add_argument("--page", type=Path, help="Markdown page whose table to write")
    args = parser.parse_args()
    import torch

    from drope.results import describe_run

    torch.set_num_threads(1)
    command = "python benchmarks/token_efficiency.py"
    found: dict[str, Any] = {"benchmark": "token_efficiency", "about": describe_run(command), "runs": []}
    found["settings"] = {k: v for k, v in vars(args).items() if k in ("model", "data", "batch_tokens", "samples")}
    found["settings"]["eval_blocks"] = EVAL_BLOCKS
    for path in [p for p in (args.out, *args.add) if p.exists()]:
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["settings"] != found["settings"]:
            raise SystemExit(f"{path} has runs of other settings: {kept['settings']}")
        if path == args.out:
            found["about"] = kept["about"]  # of when it was begun
        found["runs"] += [r for r in kept["runs"] if identity(r) not in map(identity, found["runs"])]
    for seed in args.seeds:
        for lever in args.levers:
            rate = args.learning_rate or rate_of(lever)
            tokens = args.tokens // args.batch_tokens * args.batch_tokens
            if (lever, seed, tokens, rate) in map(identity, found["runs"]):
                continue
            run = train(lever, seed, args.tokens, rate, args)
            found["runs"].append(run)
            save(args.out, found)
            answers = " ".join(f"{min(row.values()):.2f}" for row in run["answer_loss"].values())
            print(
                f"{lever:40} {seed} {rate:.0e} {run['eval_loss']:.3f} {run['cpu_seconds']:.0f}s {answers}", flush=True
            )
    save(args.out, found)
    found["summary"] = summarise(found["runs"])
    if args.plot:
        plot(found, args.plot)
    if args.page:
        fill(args.page, found)


if __name__ == "__main__":
    main()
