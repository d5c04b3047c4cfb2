"""The tables as Markdown and LaTeX: whole rows, escaped names, and the same numbers in both."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from himalaya_adapter.report import latex, markdown, write_comparison
from himalaya_adapter.report.comparison import Comparison, compare
from himalaya_adapter.report.result_pages import comparison_tables
from himalaya_adapter.report.run_folder import read_comparable_runs

TASKS = ["film_verdict", "100% & {more}", "law|topic"]
AWKWARD = r"[LoRA] r=8 \o/ 50% & $x_1$ #~^ |*"
MakeRun = Callable[..., Path]


def check_latex(text: str) -> None:
    """What a LaTeX run would complain about first: braces, environments, maths, columns and special characters."""
    text = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    assert not re.search(r"[^\x00-\x7f]", text), "all signs are commands"
    literal = re.sub(r"\\[\\{}$&#%_|]", lambda found: "\\\\" if found[0] == r"\\" else "", text)
    depth = 0
    for character in literal:
        depth += {"{": 1, "}": -1}.get(character, 0)
        assert depth >= 0
    assert depth == 0
    assert literal.count("$") % 2 == 0
    outside_maths = re.sub(r"\$[^$]*\$", "", literal)
    assert not re.search(r"[_^#~]", outside_maths)
    stack = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
        if kind == "begin":
            stack.append(name)
        else:
            assert stack.pop() == name
    assert stack == []
    for columns, body in re.findall(r"\\begin\{tabular\}\{@\{\}([lr]+)@\{\}\}\n(.*?)\\end\{tabular\}", text, re.S):
        rows = [line for line in body.splitlines() if not re.fullmatch(r"\\(top|mid|bottom)rule", line)]
        assert len(rows) > 1
        for row in rows:
            assert row.endswith(r" \\")
            assert not row.startswith("[")
            assert len(re.findall(r"(?<!\\)&", row)) == len(columns) - 1


def check_markdown(text: str) -> None:
    for block in re.findall(r"(?:^\|.*\n)+", text, re.M):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1


def as_latex(comparison: Comparison) -> str:
    return latex.document(comparison_tables(comparison), comparison.notes)


@pytest.fixture
def written(make_run: MakeRun, tmp_path: Path) -> Comparison:
    for seed in range(2):
        make_run(f"h{seed}", tasks=TASKS, seed=seed)
        make_run(f"l{seed}", tasks=TASKS, seed=seed, method="lora", method_name=AWKWARD, forgetting_rate=0.15)
    return compare(read_comparable_runs(tmp_path, ["h0", "h1", "l0", "l1"]))


def test_latex_is_whole_and_escaped(written: Comparison) -> None:
    text = as_latex(written)
    check_latex(text)
    topics = re.findall(r"\\label\{tab:(.*?)\}", text)
    assert topics == [
        *("headline", "further-metrics", "seeds", "paired-tests", "tasks-now", "tasks-learnt", "task-tests"),
    ]
    assert r"{}[LoRA] r=8 \textbackslash{}o/ 50\% \& \$x\_1\$ \#\textasciitilde{}\textasciicircum{}" in text
    assert r"100\% \& \{more\}" in text
    assert text.count(r"\toprule") == len(topics)


def test_markdown_is_whole_and_holds_the_same_numbers(written: Comparison) -> None:
    text = markdown.document(written, comparison_tables(written))
    check_markdown(text)
    lora = written.groups[1].spread("forgetting")
    assert f"{lora.mean:.3f} ± {lora.deviation:.3f}" in text
    assert rf"{lora.mean:.3f} {{\scriptsize $\pm$ {lora.deviation:.3f}}}" in as_latex(written)
    assert r"law\|topic" in text
    assert r"\|\*" in text


def test_no_name_is_read_as_markdown() -> None:
    escaped = markdown.escape("[x](javascript:y) <img> `code` | **b**\n# head \\")
    assert escaped == r"[x]\(javascript:y) &lt;img> \`code\` \| \*\*b\*\* # head \\"
    assert markdown.escape("film_verdict") == "film_verdict"
    assert markdown.escape("_a_ __b__ c&lt;d") == r"\_a_ \_\_b__ c&amp;lt;d"


def test_formulas_become_maths() -> None:
    assert latex.escape("mean_{j<T} (a_{T,j} − 1) ≤ 50 %…") == (
        r"$\mathrm{mean}_{j< T}$ ($a_{T,j}$ $-$ 1) $\le$ 50 \%\dots{}"
    )
    assert latex.escape("λ/2 Σ_{i} (θ_{i} − θ*_{i})²") == (
        r"$\lambda$/2 $\sum_{i}$ ($\theta_{i}$ $-$ $\theta*_{i}$)$^2$"
    )


@pytest.mark.parametrize(
    "name", [r"a_{\input{/etc/passwd}}", r"b_{i}\end{table}", r"c_{$\write18{x}$}", r"d_{%}", "e_{^^5c}", "f_{é_1}"]
)
def test_no_name_is_read_as_latex(name: str) -> None:
    escaped = latex.escape(name)
    assert not re.search(r"\\(?!textbackslash|textasciicircum|[{}$&#%_])", escaped.replace(r"\mathrm", "")), escaped
    assert not re.search(r"(?<!\\)%", escaped)


def test_many_methods_have_a_line_each(make_run: MakeRun, tmp_path: Path) -> None:
    methods = ["himalaya", "lora", "lilac", "coltas", "glodis"]
    for method in methods:
        make_run(method, tasks=TASKS, method=method, method_name=method.upper())
    page = write_comparison(tmp_path, methods, tmp_path / "out").read_text(encoding="utf-8")
    text = (tmp_path / "out" / "tables.md").read_text(encoding="utf-8")
    check_markdown(text)
    check_latex((tmp_path / "out" / "tables.tex").read_text(encoding="utf-8"))
    header, _, *lines = text.split("\n\n")[1].splitlines()
    assert header.startswith("| method | Retained-accuracy AUC ↑ | Average accuracy (AA) ↑ |")
    assert [line.split(" ")[1].strip("*") for line in lines] == [method.upper() for method in methods]
    for formula in ("divided by T − 1", "mean<sub>j</sub> a<sub>j,j</sub>"):
        assert formula in page  # in the legend
    assert '<details class="folded">' in page  # the matrices
