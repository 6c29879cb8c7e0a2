"""A table of a study, and its forms: terminal, CSV, Markdown, LaTeX (booktabs), HTML."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.table import Table

from anomaly_vlm.files import write_text
from anomaly_vlm.names import csv_cell, shown
from anomaly_vlm.reporting.console import console, show
from anomaly_vlm.reporting.tables import empty_table, plain

LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"} | {
    c: f"\\{c}" for c in "&%$#_{}"
}
LATEX |= {"±": r"$\pm$", "−": "$-$", "…": r"\dots{}", "×": r"$\times$"}


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        text: What it says.
        best: Whether it is the best of its column, which every form but CSV marks.
    """

    text: str
    best: bool = False


@dataclass(frozen=True)
class StudyTable:
    """A table before it takes a form.

    Attributes:
        name: Ends the names of its files, such as `road`; empty for the only table of a study.
        head: Lines above it: what all rows have in common.
        labels: Titles of the columns that say what a row is.
        titles: Titles of the columns of numbers.
        rows: Cells, those of `labels` first.
        foot: Lines below it.
    """

    name: str
    head: list[str]
    labels: list[str]
    titles: list[str]
    rows: list[list[Cell]]
    foot: list[str] = field(default_factory=list)

    def named(self, name: str, title: str) -> StudyTable:
        """The same table under another name, below a title."""
        return replace(self, name=name, head=[title, *self.head])

    def rich(self) -> Table:
        """For the terminal."""
        table = empty_table(self.head)
        for title in self.labels:
            table.add_column(plain(title))
        for title in self.titles:
            table.add_column(title, justify="right")
        for row in self.rows:
            table.add_row(*(f"[bold]{plain(cell.text)}[/bold]" if cell.best else plain(cell.text) for cell in row))
        table.caption = "\n".join(plain_line(line) for line in self.foot) or None
        table.caption_justify = "left"
        return table

    def csv(self) -> str:
        """Comma-separated, a line a row; undefined values are empty."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([*self.labels, *self.titles])
        writer.writerows([csv_cell("" if cell.text == "-" else cell.text) for cell in row] for row in self.rows)
        return text.getvalue()

    def markdown(self) -> str:
        """A pipe table between the lines of head and foot, the best values in bold."""
        lines = [f"| {' | '.join(map(_pipe, [*self.labels, *self.titles]))} |"]
        lines.append(f"| {' | '.join(['---'] * len(self.labels) + ['---:'] * len(self.titles))} |")
        for row in self.rows:
            cells = (f"**{_pipe(cell.text)}**" if cell.best else _pipe(cell.text) for cell in row)
            lines.append(f"| {' | '.join(cells)} |")
        return "\n\n".join(filter(None, ["  \n".join(self.head), "\n".join(lines), "  \n".join(self.foot)])) + "\n"

    def latex(self) -> str:
        """A `table` for a paper that loads booktabs, the best values in bold; the head is its caption."""
        lines = [r"\begin{table}", r"\centering", rf"\caption{{{_latex('. '.join([*self.head, *self.foot]))}}}"]
        lines.append(rf"\begin{{tabular}}{{{'l' * len(self.labels)}{'r' * len(self.titles)}}}")
        lines += [r"\toprule", f"{' & '.join(map(_latex, [*self.labels, *self.titles]))} \\\\", r"\midrule"]
        for row in self.rows:
            cells = (rf"\textbf{{{_latex(cell.text)}}}" if cell.best else _latex(cell.text) for cell in row)
            lines.append(f"{' & '.join(cells)} \\\\")
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"]) + "\n"


FORMATS: dict[str, tuple[str, Callable[[StudyTable], str]]] = {  # name -> ending of the file, text
    "csv": ("csv", StudyTable.csv),
    "markdown": ("md", StudyTable.markdown),
    "latex": ("tex", StudyTable.latex),
}


def show_tables(tables: Sequence[StudyTable], form: str = "terminal") -> None:
    """Prints tables: on the terminal, or in one of `FORMATS`, ready for a file."""
    for table in tables:
        if form == "terminal":
            show(table.rich())
        else:
            console.out(FORMATS[form][1](table), highlight=False)


def page(tables: Sequence[StudyTable], title: str) -> str:
    """One HTML page with all tables, which needs no other file and no network."""
    import jinja2

    source = (Path(__file__).parent / "study.html.j2").read_text(encoding="utf-8")
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(source)
    return template.render(tables=tables, title=title)


def write_tables(tables: Sequence[StudyTable], folder: Path, *, title: str | None = None) -> list[Path]:
    """Writes tables in every form: `table.csv`, `table.md`, `table.tex`, as `table_NAME.*` where they have names.

    Args:
        tables: Of one study.
        folder: Existing folder.
        title: Of the page `tables.html`; None for the folder's name.

    Returns:
        The files, the page first.
    """
    paths = [folder / "tables.html"]
    write_text(paths[0], page(tables, title or folder.absolute().name))
    for table in tables:
        for ending, form in FORMATS.values():
            path = folder / f"table{f'_{table.name}' if table.name else ''}.{ending}"
            write_text(path, form(table))
            paths.append(path)
    return paths


def plain_line(text: str) -> str:
    """A line of text in which nothing is read as markup."""
    return shown(text).replace("[", r"\[")


def _pipe(text: str) -> str:
    return re.sub(r"([|*_`<])", r"\\\1", shown(text))


def _latex(text: str) -> str:
    return "".join(LATEX.get(character, character) for character in shown(text))
