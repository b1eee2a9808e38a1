"""Training at the original context as if it were longer: spans of the context count several times.

Without positions, attention over a context sees a set of keys. A key that occurs m times weighs as much as one key
whose logit is raised by ln m, so softmax(q k / sqrt(d) + ln m) over C tokens is attention over a context of sum(m)
tokens, in which tokens are repeated, at the cost of C. (Exact for one attention; deeper, copies share one state.)
A model that has to find what it looks for under a weight of ln m that fell elsewhere learns margins that hold when a
context is really so much longer: the dilution that a softmax temperature repairs afterwards is trained away instead.
"""

from __future__ import annotations

import math
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from drope.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SHORTEST_SPAN = 8  # tokens, on average; the longest average is a quarter of the block
PLAIN_SHARE = 0.1  # share of the blocks that are seen as they are
_IMPLEMENTATIONS = ("sdpa", "eager")  # that add a mask's numbers to the logits


def log_copies(ids: Tensor, largest: float, seed: int) -> Tensor:
    """ln m for each token of a block `ids` (T,), float32 (T,): spans count once or m times, by the toss of a coin.

    m is drawn once a block, log-uniformly from 1 to `largest`. The draw depends on the block and the seed alone, so
    that it is the same after a resume and on any number of processes.
    """
    tokens = ids.numpy().astype(np.int64)
    random = np.random.default_rng([seed, zlib.crc32(tokens.tobytes())])
    n = len(tokens)
    mean_span = math.exp(random.uniform(math.log(SHORTEST_SPAN), math.log(max(SHORTEST_SPAN, n / 4))))
    logarithm = 0.0 if random.random() < PLAIN_SHARE else random.uniform(0, math.log(largest))
    span = np.cumsum(random.random(n) < 1 / mean_span)
    raised = random.random(span[-1] + 1) < 0.5
    return torch.from_numpy(np.where(raised[span], logarithm, 0.0).astype(np.float32))


def weighted_causal_mask(logarithms: Tensor, dtype: torch.dtype, documents: Tensor | None = None) -> Tensor:
    """What is added to attention logits, (B, 1, T, T): ln m of the key where it is seen, else the least number.

    logarithms : ln m per token, (B, T); documents: a number per document, (B, T), where tokens see their own only
    """
    n = logarithms.shape[1]
    seen = torch.ones(n, n, dtype=torch.bool, device=logarithms.device).tril()[None]
    if documents is not None:
        seen = seen & (documents[:, :, None] == documents[:, None, :])
    mask = torch.where(seen, logarithms[:, None, :].to(dtype), torch.finfo(dtype).min)
    return mask[:, None]


def check_virtual_length(model: PreTrainedModel, context: int) -> None:
    """Whether the model's attention takes such a mask.

    Raises
    ------
    InputError : an attention implementation that takes no mask, or layers whose window is shorter than the block
    """
    config: Any = model.config.get_text_config(decoder=True)
    chosen = config._attn_implementation
    if chosen not in _IMPLEMENTATIONS:
        raise InputError(
            "virtual_length", f"more than 1 with {chosen}", f"attention by {' or '.join(_IMPLEMENTATIONS)}",
            "Load the model with attn_implementation='sdpa'.",
        )  # fmt: skip
    window = getattr(config, "sliding_window", None)
    if window and getattr(config, "use_sliding_window", True) and window < context:
        raise InputError("virtual_length", f"more than 1 with windows of {window}", "1 for models with windowed layers")
