"""The long pages of the site, written when it is built: results, streams, keys, commands, and the start page.

MkDocs calls `on_files`; see mkdocs.yml.
"""

import re
from pathlib import Path

import generate_experiments
import generate_latency
import generate_results
import generate_streams
import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from typer.cli import get_docs_for_click

from himalaya_adapter.cli import app

README = Path(__file__).parents[1] / "README.md"


def start_page() -> str:
    """The README, its links as they are on the site; files that are not on it lose their link."""
    text = README.read_text(encoding="utf-8").replace("](docs/", "](")
    return re.sub(r"(?<!!)\[([^\]]+)\]\((?!http|#)([^)#]+\.(?!md)\w+|[A-Z]\w+)\)", r"\1", text)


def command_line() -> str:
    """The help of every command."""
    command = typer.main.get_command(app)
    return get_docs_for_click(obj=command, ctx=typer.Context(command), name="himalaya", title="Command line")


PAGES = {
    "index.md": start_page,
    "result-tables.md": generate_results.tables_page,
    "stream-tables.md": generate_streams.page,
    "config-keys.md": generate_experiments.page,
    "command-line.md": command_line,
    "latency-tables.md": generate_latency.page,
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    for name, written in PAGES.items():
        files.append(File.generated(config, name, content=written()))
    return files
