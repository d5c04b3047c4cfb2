"""What the source's run config of LILAC says about the method, and which of its keys belong to it alone."""

import re

import pytest
from source_runs import LILAC, leaves, read

from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.experiments import compose_run
from himalaya_adapter.experiments.method_options import adapter_options
from himalaya_adapter.experiments.validation import check_run
from himalaya_adapter.methods.construction import run_method
from himalaya_adapter.methods.lilac import LilacConfig

NAME = LILAC.name


def test_the_run_is_the_method_as_the_source_sets_it() -> None:
    run = compose_run([f"run={NAME}"]).run
    check_run(run)
    assert run.training.learning_rate == 1e-4
    assert run.model.adapter.ewc_lambda == 0.4
    config = run_method(run)
    assert isinstance(config, LilacConfig)
    assert (config.lora_rank, config.dictionary_size, config.quantisation_bits) == (4, 64, 8)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model.adapter.lora_rank=0"], "lora_rank=0 must be at least 1 (the run sets it as model.adapter.lora_rank)"),
        (["model.adapter.quantisation_bits=1"], "(the run sets it as model.adapter.quantisation_bits)"),
        (
            ["model.adapter.options.lora_rank=2"],
            "model.adapter.lora_rank and model.adapter.options.lora_rank of run '{name}' set the same thing",
        ),
        (
            ["model.kd_tree.fanout=4"],
            "model.kd_tree.fanout of run '{name}' is a key of HIMALAYA, model.adapter.type is",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_its_key(words: list[str], message: str) -> None:
    with pytest.raises(HimalayaError) as caught:
        run_method(compose_run([f"run={NAME}", *words]).run)
    assert message.format(name=NAME) in str(caught.value)


@pytest.mark.parametrize("key", LILAC.options)
@pytest.mark.parametrize("method", ["HIMALAYA", "LORA", "GLODIS"])
def test_a_key_of_lilac_is_refused_for_another_method(key: str, method: str) -> None:
    words = ["run=demo-lora", "model.adapter.options={}", f"model.adapter.type={method}", f"{key}=4"]
    with pytest.raises(HimalayaError, match=rf"^{re.escape(key)} of run 'lora' is a key of LILAC, .* is {method}: "):
        check_run(compose_run(words).run)


def test_elastic_weight_consolidation_is_for_every_method_but_himalaya() -> None:
    for name in ("demo-lora", "demo-lilac", "demo-coltas", "demo-glodis"):
        run = compose_run([f"run={name}", "model.adapter.ewc_lambda=0.5"]).run
        check_run(run)
        assert "ewc_lambda" not in adapter_options(run)
    message = r"^model\.adapter\.ewc_lambda=0\.5 of run 'himalaya': expected null: HIMALAYA protects earlier tasks"
    with pytest.raises(HimalayaError, match=message):
        check_run(compose_run(["run=demo-himalaya", "model.adapter.ewc_lambda=0.5"]).run)


@pytest.mark.parametrize("name", ["lilac", "coltas", "glodis"])
def test_the_demo_of_a_rival_differs_from_loras_in_the_method_and_its_rate_alone(name: str) -> None:
    ours, loras = leaves(read(f"demo-{name}")), leaves(read("demo-lora"))
    differing = {key for key in ours.keys() | loras.keys() if ours.get(key) != loras.get(key)}
    own = {"run_id", "method_name", "training.learning_rate"}
    assert {key for key in differing if not key.startswith("model.adapter.")} <= own
    assert run_method(compose_run([f"run=demo-{name}"]).run).peft_type.value == name.upper()
