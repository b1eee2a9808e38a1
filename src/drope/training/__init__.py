"""Recalibrating a model: the Trainer subclass, its objective, and the schedules of rate and rotation."""

from __future__ import annotations

from drope.training.config import RECIPES, RecalibrationConfig
from drope.training.recalibrate import RecalibrationResult, recalibrate

__all__ = ["RECIPES", "RecalibrationConfig", "RecalibrationResult", "recalibrate"]
