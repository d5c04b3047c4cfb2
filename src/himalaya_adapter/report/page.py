"""A report as one self-contained HTML page: nothing is fetched, and no script but the page's own may run."""

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from himalaya_adapter.report.charts import Figure, as_data
from himalaya_adapter.report.palette import Look
from himalaya_adapter.report.table import TEMPLATES, Table
from himalaya_adapter.storage import write_atomic

IN_A_SCRIPT = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"})  # so that no text can end the element


@dataclass(frozen=True)
class Page:
    """A report.

    Attributes:
        kind: What it is a report of.
        title: What the browser calls it.
        names: Its heading: methods.
        facts: Names and values under the heading.
        parts: Figures and tables in the order in which they are read, each a section; what is None is left out.
        notes: Sentences under the facts.
        texts: Titles and files, shown at the end as they are.
    """

    kind: str
    title: str
    names: Sequence[Look]
    facts: Sequence[tuple[str, str]]
    parts: Sequence[Table | Figure | None]
    notes: Sequence[str] = ()
    texts: Sequence[tuple[str, str]] = ()

    def write(self, folder: Path, stem: str = "") -> Path:
        """Write ``report.html``, and with a ``stem`` every figure as ``figures/<stem>_<topic>.png`` and ``.pdf``.

        Returns:
            Path of the page.
        """
        figures = [part for part in self.parts if isinstance(part, Figure)]
        if stem:
            from himalaya_adapter.report import paper  # matplotlib is slow to import

            paper.write(figures, folder / "figures", stem)
        path = folder / "report.html"
        write_atomic(path, self._render(figures))
        return path

    def _render(self, figures: Sequence[Figure]) -> str:
        """The page; every text in it is escaped."""
        environment = Environment(
            loader=PackageLoader("himalaya_adapter.report"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        environment.filters["formula"] = _formula
        style, script = (TEMPLATES.joinpath(f"report.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
        charts = {figure.topic: as_data(figure.charts) for figure in figures}
        data = json.dumps(charts, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        return environment.get_template("page.html.j2").render(
            page=self,
            parts=[part for part in self.parts if part is not None],
            style=Markup(style),
            script=Markup(script),
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            figures=Markup(data.translate(IN_A_SCRIPT)),
        )


def _formula(text: str, subscripts: bool = True) -> Markup:
    """Set ``_{i,j}`` as a subscript where there are formulas, keep an arrow on its word's line, let other names break
    after their underscores; everything is escaped."""
    marked = str(escape(re.sub(" (?=[↑↓])", "\u00a0", text)))
    if subscripts:
        marked = re.sub(r"_\{([\w,;&≤≥= ]+)\}", r"<sub>\1</sub>", marked)
    return Markup(marked.replace("_", "_<wbr>"))
