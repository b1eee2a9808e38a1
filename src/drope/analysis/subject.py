"""What is analysed, and the text that it is looked at with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from drope.analysis.text import text_ids

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


@dataclass
class Subject:
    """What is analysed. model, tokenizer : None where only the config is looked at.

    temperature : a fit as `drope temperature` writes it (`a`, `context`), to compare the prediction with
    """

    name: str
    config: PreTrainedConfig
    model: PreTrainedModel | None = None
    tokenizer: Any = None
    against: PreTrainedModel | None = None
    against_name: str = ""
    temperature: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)

    def ids(self, text: str, length: int) -> torch.Tensor:
        """Text where there is a tokenizer; else random ids, for what needs no more (gradients at initialisation)."""
        if self.tokenizer is not None:
            return text_ids(self.tokenizer, text, length)
        vocabulary = self.config.get_text_config(decoder=True).vocab_size
        return torch.randint(0, vocabulary, (1, length), generator=torch.Generator().manual_seed(0))
