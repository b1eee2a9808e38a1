"""The whole job in order, each stage resumable: drop, recalibrate, fit the temperature, compare, save, report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from drope.errors import InputError
from drope.files import fingerprint, write_json
from drope.record import folded_beta, recalibrated_tokens

if TYPE_CHECKING:
    from drope.evaluation import Entry, EvaluationConfig
    from drope.models import Loaded
    from drope.positions.temperatures import Tempered
    from drope.results import Results
    from drope.temperature import FormFit, TemperatureFit
    from drope.training import RecalibrationConfig, RecalibrationResult

#: What the source model is measured with, beside the model that comes out.
SCALINGS = ("rope", "pi", "ntk", "dynamic_ntk", "yarn", "nope")


@dataclass
class ExtendConfig:
    """What `extend` does. Lengths are in tokens.

    to : target length; the temperature for it is folded into the checkpoint
    recalibration : data, tokens and recipe
    evaluation : tasks, lengths and trials
    methods : positional methods that the source model is measured with
    continue_from : a position-free checkpoint that has had part of its recalibration already, to go on from
    control : also train the source with RoPE kept on the same tokens, and measure it
    qk_norm : per-head QKNorm for the position-free model (Llama-shaped models); qk_norm_init: `fitted` or `ones`
    temperature_text : held-out text for fitting β; temperature_objective: `perplexity` or `needles`
    temperature_tokens : per length and evaluation of the loss
    temperature_form : `log`, β(s) = 1 + a ln s as in the paper, or `per_head_log`, an a for each head, fitted by
        `temperature_steps` steps of gradient descent at the target length
    """

    to: int
    recalibration: RecalibrationConfig
    evaluation: EvaluationConfig
    methods: Sequence[str] = SCALINGS
    continue_from: str | None = None
    control: bool = False
    qk_norm: bool = False
    qk_norm_init: Literal["fitted", "ones"] = "fitted"
    temperature_text: str = "stdlib:heldout"
    temperature_objective: Literal["perplexity", "needles"] = "perplexity"
    temperature_tokens: int = 32768
    temperature_form: Literal["log", "per_head_log"] = "log"
    temperature_steps: int = 200
    notes: list[str] = field(default_factory=list)

    def settings(self) -> dict[str, Any]:
        """Everything that decides the outcome, as JSON."""
        return json.loads(json.dumps(asdict(self), default=str))


@dataclass
class Extended:
    """What `extend` returns: the measured results and where everything lies."""

    results: Results
    checkpoint: Path
    report: Path


def extend(
    source: str,
    out: str | Path,
    config: ExtendConfig,
    *,
    command: str = "drope extend",
    loading: dict[str, Any] | None = None,
    say=lambda text: None,
) -> Extended:
    """Upgrade `source` to `config.to` tokens of context: `out/checkpoint`, `out/results.json` and `out/report.html`.

    A second call with the same settings goes on after the last finished stage, and inside it where the stage can.

    Parameters
    ----------
    source : what `drope.models.load` takes
    loading : further keywords of `drope.models.load`
    say : called with one line at the start of each stage

    Raises
    ------
    InputError : a setting that cannot be used, or `out` belongs to a run with other settings
    Interrupted : stopped by a signal; the finished work is kept
    """
    from drope import models
    from drope.evaluation import compare
    from drope.report import write
    from drope.training import processes

    out = Path(out)
    if processes.count() > 1:
        hint = "Train with drope recalibrate on several, then go on from its model with --continue-from on one."
        raise InputError("WORLD_SIZE", processes.count(), "one process for drope extend", hint)
    _claim(out, source, config)
    loaded = models.load(source, **(loading or {}))
    if loaded.tokenizer is None:
        raise InputError("MODEL", source, "a checkpoint with a tokenizer")
    context = config.recalibration.context or models.rope_shape(loaded.model.config).context
    if config.to <= context:
        raise InputError("--to", config.to, f"a length above the training context of {context} tokens")

    say(f"Recalibrating without positions at {context} tokens of context")
    run = _recalibrated(loaded, out, config, loading or {})
    control = None
    if config.control:
        say("Training the control: RoPE kept, the same tokens")
        control = _control(source, out, config, loading or {})

    say("Fitting the softmax temperature")
    temperature = _temperature(run.model, loaded.tokenizer, out, config, context)
    say(f"Measuring {len(config.methods) + 1 + config.control} methods on the same trials")
    entries = _entries(loaded, run, control, temperature, config)
    results = compare(entries, config.evaluation, out, context=context, model_name=_shown(source), command=command)
    results.recovery = _recovery(run, "drope") + (_recovery(control, "control") if control else [])
    results.temperature = temperature.rows()
    results.meta |= {
        "source": _shown(source), "target_length": config.to, "notes": config.notes, "settings": config.settings(),
        "recalibration_tokens": _tokens(run, config),
    }  # fmt: skip
    results.save(out / "results.json")

    say("Writing the checkpoint and the report")
    checkpoint = _save(run, loaded, out, config, temperature, results)
    return Extended(results, checkpoint, write(results, out / "report.html"))


def _claim(out: Path, source: str, config: ExtendConfig) -> None:
    """Take the folder for this run, or find that it is this run's already."""
    record = out / "extend.json"
    mine = {"source": source, "settings": config.settings()}
    if record.exists():
        try:
            theirs = json.loads(record.read_text(encoding="utf-8"))
        except ValueError:
            raise InputError("--out", str(out), "a new folder; its extend.json is damaged") from None
        if fingerprint(theirs) != fingerprint(json.loads(json.dumps(mine))):
            raise InputError(
                "--out", str(out), "a new folder, or the folder of a run with the same settings",
                f"It holds a run with other settings ({', '.join(_differences(theirs, mine))}); choose another folder.",
            )  # fmt: skip
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError("--out", str(out), "a folder that does not exist yet, or one that `drope extend` began")
    out.mkdir(parents=True, exist_ok=True)
    write_json(record, mine)


def _differences(theirs: Any, mine: Any, at: str = "") -> list[str]:
    if isinstance(theirs, dict) and isinstance(mine, dict):
        keys = [*theirs, *(k for k in mine if k not in theirs)]
        return [d for k in keys for d in _differences(theirs.get(k), mine.get(k), f"{at}.{k}" if at else str(k))]
    return [] if theirs == mine else [at.removeprefix("settings.")]


def _recalibrated(loaded: Loaded, out: Path, config: ExtendConfig, loading: dict[str, Any]) -> RecalibrationResult:
    """The position-free model: from the source, or from the checkpoint that `continue_from` names."""
    from drope import models
    from drope.training import recalibrate

    start = models.load(config.continue_from or loaded.source, **loading).model
    settings = config.recalibration
    if config.continue_from:
        if not models.is_position_free(start):
            raise InputError("continue_from", config.continue_from, "a position-free checkpoint that drope wrote")
        if (beta := folded_beta(config.continue_from)) != 1:
            raise InputError(
                "continue_from", config.continue_from, "a checkpoint whose temperature is 1",
                f"This one has {beta:g} folded into its weights; take one that `drope recalibrate` wrote.",
            )  # fmt: skip
        settings = replace(settings, fade=None)  # its rotation is gone already
    if config.qk_norm and not config.continue_from:
        if not config.recalibration.fade:
            models.drop(start)
        start, _ = models.add_qk_norm(start, _batches(loaded, config), init=config.qk_norm_init)
    teacher = loaded.model if settings.distill or settings.match else None
    folder = out / "recalibration"
    return recalibrate(start, loaded.tokenizer, settings, folder, resume=folder.exists(), teacher=teacher)


def _control(source: str, out: Path, config: ExtendConfig, loading: dict[str, Any]) -> RecalibrationResult:
    from drope import models
    from drope.training import recalibrate

    fresh = models.load(source, **loading)
    folder = out / "control"
    settings = config.recalibration
    return recalibrate(fresh.model, fresh.tokenizer, settings, folder, resume=folder.exists(), control=True)


def _batches(loaded: Loaded, config: ExtendConfig) -> list:
    import torch

    from drope.data.packing import pack
    from drope.models import rope_shape

    context = config.recalibration.context or rope_shape(loaded.model.config).context
    blocks = pack(config.recalibration.data, loaded.tokenizer, context, tokens=16 * context)
    return [torch.as_tensor(blocks.dataset[i]["input_ids"])[None] for i in range(min(16, len(blocks.dataset)))]


def _temperature(model, tokenizer, out: Path, config: ExtendConfig, context: int) -> TemperatureFit | FormFit:
    from drope import positions, temperature
    from drope.evaluation.tasks import NEEDLES
    from drope.temperature.heads import Gradient

    path = out / "temperature.json"
    if path.exists():
        return temperature.read_fit(path)
    tasks, lengths, _ = config.evaluation.resolved(context)
    needles = [t for t in tasks if t in NEEDLES]
    common: Any = {
        "text": config.temperature_text, "max_tokens": config.temperature_tokens,
        "objective": config.temperature_objective, "seed": config.evaluation.seed,
    } | ({"tasks": needles} if needles else {})  # fmt: skip
    fitted: TemperatureFit | FormFit
    if config.temperature_form == "log":
        targets = sorted({config.to, *(n for n in lengths if n > context)})
        fitted = temperature.fit(model, tokenizer, targets, context=context, **common)
    else:
        fitted = temperature.fit_form(
            model, tokenizer, config.temperature_form, config.to, method=positions.get("drope"),
            gradient=Gradient(steps=config.temperature_steps), batch_tokens=max(config.to, 8192), **common,
        )  # fmt: skip
    write_json(path, fitted.to_dict())
    return fitted


def _entries(
    loaded: Loaded,
    run: RecalibrationResult,
    control: RecalibrationResult | None,
    temperature: TemperatureFit | FormFit,
    config: ExtendConfig,
) -> dict[str, Entry]:
    from drope import positions
    from drope.evaluation import Entry
    from drope.temperature import FormFit

    if isinstance(temperature, FormFit):
        ours = Entry(run.model, loaded.tokenizer, [_tempered(temperature)])
    else:
        ours = Entry(run.model, loaded.tokenizer, [positions.get("drope")], temperature)
    entries = {
        "drope": ours,
        "source": Entry(loaded.model, loaded.tokenizer, [positions.get(m) for m in config.methods]),
    }
    if control:
        entries["control"] = Entry(control.model, loaded.tokenizer, [positions.get("rope")])
    return entries


def _recovery(run: RecalibrationResult, name: str) -> list[dict[str, Any]]:
    return [{"run": name, **row} for row in run.history]


def _save(
    run: RecalibrationResult,
    loaded: Loaded,
    out: Path,
    config: ExtendConfig,
    temperature: TemperatureFit | FormFit,
    results: Results,
) -> Path:
    from drope import models
    from drope.report import table
    from drope.temperature import FormFit

    target = out / "checkpoint"
    provenance = {
        "source": _shown(loaded.source), "method": "drope", "tokens": _tokens(run, config), "data": run.data,
        "temperature": {"objective": temperature.objective}, "recalibration": config.settings()["recalibration"],
    }  # fmt: skip
    common: Any = {"target_length": config.to, "card": {"notes": table(results)}, "overwrite": True}
    if isinstance(temperature, FormFit):
        provenance["temperature"] |= {"form": temperature.form}
        method = _tempered(temperature)
        return models.save(run.model, target, loaded.tokenizer, method=method, provenance=provenance, **common)
    provenance["temperature"] |= {"a": temperature.a}
    beta = temperature.beta(config.to)
    return models.save(run.model, target, loaded.tokenizer, beta=beta, provenance=provenance, **common)


def _tempered(fit: FormFit) -> Tempered:
    """DroPE with a temperature of another form than β(s)."""
    from drope import positions
    from drope.positions.temperatures import Tempered

    return Tempered(positions.get("drope"), fit.temperature)


def _tokens(run: RecalibrationResult, config: ExtendConfig) -> int:
    """Tokens of recalibration in all: those of `continue_from` and those of this run."""
    return run.tokens_seen + (recalibrated_tokens(config.continue_from) if config.continue_from else 0)


def _shown(source: str) -> str:
    """A source as others may read it: never the path of this machine."""
    return Path(source).name if Path(source).exists() else source
