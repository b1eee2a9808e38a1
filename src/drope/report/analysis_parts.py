"""What a section of an analysis page is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from drope.report.charts import Panel
from drope.report.methods import Style
from drope.report.tables import Cell, Row, Table


@dataclass(frozen=True)
class Figure:
    """Panels side by side under one caption. `scale`: the value at the dark end of a map's colours."""

    caption: str
    panels: list[Panel]
    legend: list[Style] = field(default_factory=list)
    layout: int = 1
    scale: str = ""
    trained: bool = False


@dataclass(frozen=True)
class Part:
    """A section's sentence, figures and tables."""

    lead: str
    figures: list[Figure] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)


def figure(
    caption: str, panels: Sequence[Panel | None], legend: Sequence[Style], layout: int, *, trained: bool = False
) -> Figure | None:
    """A figure of the panels that have data; None without any."""
    drawn = [p for p in panels if p]
    return Figure(caption, drawn, list(legend), layout, trained=trained) if drawn else None


def row(name: str, cells: Sequence[str], look: Style | None = None) -> Row:
    """A line of a table."""
    return Row(name, [Cell(c) for c in cells], look)


def table(title: str, corner: str, columns: Sequence[str], rows: Sequence[Row], *, folded: bool = False) -> Table:
    """A table of plain cells."""
    return Table(title, corner, list(columns), list(rows), folded=folded)
