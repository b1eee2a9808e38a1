"""The paper's theory as functions: positional bias, its gradient, the propositions, and what recalibration changes.

Every function takes an ordinary model and tensors, and gives numbers; pages are made elsewhere from `analyze`'s JSON.
`docs/theory.md` derives what is computed and says where it differs from the paper.
"""

from __future__ import annotations

from drope.analysis.attention import Block, Visitor, observe
from drope.analysis.changes import Drift, NormVisitor, outliers, weight_drift
from drope.analysis.config import PARTS, AnalysisConfig
from drope.analysis.entropy import Entropy, EntropyVisitor, sampled_lengths
from drope.analysis.figure4 import along, checkpoints, initial_gradients
from drope.analysis.frequencies import FrequencyTable, frequency_table
from drope.analysis.functional import GradientNorms, PositionalBias, functional, gradient_norms, positional_bias
from drope.analysis.heads import Head, needle_attention, positional_heads, semantic_heads
from drope.analysis.patterns import DIAGONAL, PREVIOUS, Custom, Offset, Pattern, centred, offsets
from drope.analysis.propositions import constant_input, proposition_32, proposition_33
from drope.analysis.run import analyze, check_lengths
from drope.analysis.stack import Check, Stack, Statement, spread, uniform_embeddings
from drope.analysis.subject import Subject
from drope.analysis.theorem import theorem_34
from drope.analysis.uniformity import Spread, spread_by_layer

__all__ = [
    "DIAGONAL",
    "PARTS",
    "PREVIOUS",
    "AnalysisConfig",
    "Block",
    "Check",
    "Custom",
    "Drift",
    "Entropy",
    "EntropyVisitor",
    "FrequencyTable",
    "GradientNorms",
    "Head",
    "NormVisitor",
    "Offset",
    "Pattern",
    "PositionalBias",
    "Spread",
    "Stack",
    "Statement",
    "Subject",
    "Visitor",
    "along",
    "analyze",
    "centred",
    "check_lengths",
    "checkpoints",
    "constant_input",
    "frequency_table",
    "functional",
    "gradient_norms",
    "initial_gradients",
    "needle_attention",
    "observe",
    "offsets",
    "outliers",
    "positional_bias",
    "positional_heads",
    "proposition_32",
    "proposition_33",
    "sampled_lengths",
    "semantic_heads",
    "spread",
    "spread_by_layer",
    "theorem_34",
    "uniform_embeddings",
    "weight_drift",
]
