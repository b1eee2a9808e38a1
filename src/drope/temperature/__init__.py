"""Fitting a softmax temperature to one model on held-out text or on needles.

β multiplies q·k/√d. The paper minimises held-out perplexity at the target length and publishes a = 0.412 and 0.103 of
β(s) = 1 + a·ln(s) for two models; the constant is each model's own. What serves running text may not be what serves
retrieval, so the loss of needle answers can be minimised instead (`objective="needles"`).

`fit` fits β(s) over several lengths. `fit_form` fits any other form of `drope.positions.temperatures` for one target.
"""

from __future__ import annotations

from drope.temperature.forms import FORMS, FormFit, fit_form, read_fit
from drope.temperature.length import TemperatureFit, TemperaturePoint, fit
from drope.temperature.objective import OBJECTIVES, Objective

__all__ = [
    "FORMS",
    "OBJECTIVES",
    "FormFit",
    "Objective",
    "TemperatureFit",
    "TemperaturePoint",
    "fit",
    "fit_form",
    "read_fit",
]
