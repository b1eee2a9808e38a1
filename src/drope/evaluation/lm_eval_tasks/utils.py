"""What the YAML files beside this one call: documents made by drope's own generator, and its own scorers."""

from __future__ import annotations

import json
from typing import Any


def dataset(
    drope_task: str,
    tokenizer: Any = None,
    pretrained: Any = None,
    model: Any = None,
    max_seq_lengths: Any = (4096,),
    trials: int = 100,
    seed: int = 0,
    haystack: str = "stdlib:heldout",
    **_: Any,
) -> dict[str, Any]:
    """Trials of one task, sized by the tokenizer. All but `drope_task` come from `--metadata` or model arguments.

    Parameters
    ----------
    tokenizer, pretrained, model : name of the tokenizer, the first that is given
    max_seq_lengths : tokens of prompt and answer; trials : of each length; haystack: as in `drope evaluate`
    """
    from datasets import Dataset
    from transformers import AutoTokenizer

    from drope.data.haystack import haystack as sentences
    from drope.errors import InputError
    from drope.evaluation.tasks import get_task
    from drope.evaluation.trials import Trials
    from drope.models.load import BUNDLED, bundled_folder

    name = next((n for n in (tokenizer, pretrained, model) if isinstance(n, str) and n), None)
    if name is None:
        raise InputError("--metadata", "no tokenizer", 'a tokenizer to size prompts with: {"tokenizer": "org/model"}')
    if name in BUNDLED:
        name = str(bundled_folder(name))
    maker = Trials(AutoTokenizer.from_pretrained(name), sentences(haystack), seed=seed)
    lengths = [max_seq_lengths] if isinstance(max_seq_lengths, int) else list(max_seq_lengths)
    rows = [
        {
            "prompt": t.prompt, "answers": list(t.answers), "scorer": t.scorer, "extra": json.dumps(dict(t.extra)),
            "length": t.length, "budget": t.max_new_tokens, "digest": t.digest,
        }
        for length in lengths for t in maker.batch(get_task(drope_task), int(length), int(trials))
    ]  # fmt: skip
    return {"test": Dataset.from_list(rows)}


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """score: share of the answers (RULER's); success: all of them."""
    from drope.evaluation.scoring import scorer

    score = scorer(doc["scorer"]).score(doc["answers"], results[0], json.loads(doc["extra"]))
    return {"score": score, "success": float(score == 1)}
