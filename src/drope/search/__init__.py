"""Searches over a method's settings that need the model and text."""

from __future__ import annotations

from drope.search.config import SearchConfig
from drope.search.longrope2 import SearchResult, longrope2_method, search_longrope2

__all__ = ["SearchConfig", "SearchResult", "longrope2_method", "search_longrope2"]
