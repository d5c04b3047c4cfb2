"""What an import costs, counted in modules, and that PEFT knows the methods in either order of imports."""

import ast
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from forked_programs import run_forked
from peft import get_peft_model
from tiny_runs import write_backbone

import himalaya_adapter
from himalaya_adapter import HimalayaConfig
from himalaya_adapter.errors import EXTRAS

HEAVY = {"torch", "transformers", "peft", "optuna", "trl", "lm_eval", "bitsandbytes", "datasets", "onnx", "matplotlib"}


def in_a_new_process(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


LIGHT = [
    *(None, ["--help"], ["--version"], ["run", "--help"], ["data", "list", "demo_stream_6"]),
    *(["list", what] for what in ("runs", "methods", "backbones", "streams", "keys")),
]


@pytest.mark.parametrize("words", LIGHT)
def test_what_needs_no_model_loads_none(words: list[str] | None) -> None:
    start = "import himalaya_adapter" if words is None else f"from himalaya_adapter.cli import main; main({words})"
    loaded = in_a_new_process(f"import sys; {start}; print('\\nLOADED', *sys.modules)").rpartition("LOADED")[2].split()
    assert "himalaya_adapter" in loaded
    assert HEAVY.isdisjoint(loaded)


def test_a_comparison_loads_no_model(tmp_path: Path) -> None:
    runs = Path(__file__).parents[1] / "benchmarks" / "results" / "demo"
    program = f"""
import sys
from pathlib import Path
from himalaya_adapter.report import write_comparison
write_comparison(Path({str(runs)!r}), ["himalaya", "lora"], Path({str(tmp_path)!r}))
print(*sys.modules)"""
    assert {*HEAVY, "scipy", "sklearn"}.isdisjoint(in_a_new_process(program).split())
    assert (tmp_path / "report.html").is_file()


# What the programs below import first, which has nothing of PEFT or of ours, is not what they are about.
SHARED = """
import sys, accelerate, bitsandbytes, torch, transformers.models.llama.modeling_llama
assert not {'peft', 'himalaya_adapter'} & {*sys.modules}
"""
ORDERS = {
    "PEFT first": "import peft; import himalaya_adapter",
    "PEFT last": """
import importlib.util, sys
import himalaya_adapter
assert importlib.util.find_spec("peft") is not None  # as transformers asks
assert "peft" not in sys.modules
import peft""",
}
# No package of an extra: what `pip install himalaya-adapter` brings is enough to make and save an adapter.
CORE = f"""
import sys
for name in {[name for name in EXTRAS if name != "bitsandbytes"]}:
    sys.modules[name] = None
from himalaya_adapter import HimalayaConfig, TaskCallback, save_release
from himalaya_adapter.backbones import load_backbone
"""


def test_plain_peft_loads_an_adapter_and_the_method_needs_the_core_alone(
    tmp_path: Path, tiny_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    backbone = write_backbone(tmp_path / "backbone", tiny_model, tiny_tokenizer)
    model = get_peft_model(tiny_model(), HimalayaConfig(task_type="CAUSAL_LM"))
    model.start_task("colours")
    model.end_task()
    model.save_pretrained(tmp_path / "adapter")
    load = f"""
from transformers import AutoModelForCausalLM
base = AutoModelForCausalLM.from_pretrained({str(backbone)!r})
print(peft.PeftModel.from_pretrained(base, {str(tmp_path / "adapter")!r}).tasks)
"""
    (tmp_path / "ended").mkdir()
    programs = [CORE, *(imports + load for imports in ORDERS.values())]
    core, *orders = run_forked(tmp_path / "ended", SHARED, programs)
    assert core.returncode == 0, core.stderr
    for name, ended in zip(ORDERS, orders, strict=True):
        assert ended.returncode == 0, f"{name}: {ended.stderr}"
        assert "colours" in ended.stdout, name


def test_an_unknown_name_of_the_package() -> None:
    with pytest.raises(ImportError, match="HimalayaConfg"):
        from himalaya_adapter import HimalayaConfg  # noqa: F401


# As the picture of docs/architecture.md has them, the lowest first.
FLOORS = (
    {"errors", "storage", "names", "packages", "documents"},
    {"registry", "stream_metrics"},
    {"experiments", "backbones", "streams", "identity"},
    {"methods", "peft_hook"},
    {"budget", "evaluation"},
    {"training"},
    {"report", "deploy", "search", "learning"},
    {"commands", "cli"},
)


def test_no_room_imports_from_one_above() -> None:
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    package = Path(himalaya_adapter.__file__).parent
    assert {path.name.removesuffix(".py") for path in package.glob("[a-z]*") if path.suffix in ("", ".py")} <= {
        *floor,
        "conf",
    }
    upwards = []
    for path in package.rglob("*/*.py"):
        room = path.relative_to(package).parts[0]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            module = node.module if isinstance(node, ast.ImportFrom) and node.level == 0 else None
            if module and module.startswith("himalaya_adapter."):
                other = module.split(".")[1]
                upwards += [f"{path.relative_to(package)}: {other}"] if floor[other] > floor[room] else []
    assert not upwards
