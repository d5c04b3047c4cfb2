"""PEFT's tests that cannot pass, and why: one that passes nevertheless fails the build, as does another error."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Expected:
    """How and why a test fails."""

    raises: type[Exception]
    why: str


MERGE = Expected(NotImplementedError, "the update of the residual stream follows a layer: there is no weight for it")
QUANTISED = Expected(NotImplementedError, "merging into a quantised weight would round the update away")
FLOAT32 = Expected(AssertionError, "the state stays in float32: few numbers move by small steps")
COUNT = Expected(AssertionError, "counts parameters per layer, but all layers share them; PEFT skips it for VeRA")
SEED = Expected(AssertionError, "expects another start from torch's global seed; ours depends on config.seed alone")
# By ``Class.test:case``, with wildcards.
ALLOWED: dict[str, Expected] = {
    # Up to the merge these check what does hold; NotImplementedError says that they got there.
    "TestPeftCustomModel.test_merge_layers*:residual-stream": MERGE,
    "TestPeftCustomModel.test_safe_merge:residual-stream": MERGE,
    "TestPeftCustomModel.test_forward_*float16*:residual-stream": MERGE,
    "TestPeftCustomModel.test_disable_adapters_with_merging:residual-stream": MERGE,
    "TestPeftCustomModel.test_delete_merged_adapter_*:residual-stream": MERGE,
    "TestQuantization.test_merge_unmerge_unload:*": QUANTISED,
    "TestPeftCustomModel.test_adapter_dtype_autocast:*-False-dtype[01]-*": FLOAT32,
    "TestDecoderModels.test_add_adapter_no_autocast_adapter_dtype:*": FLOAT32,
    "TestDecoderModels.test_training_decoders_layer_indexing:*": COUNT,
    "TestDecoderModels.test_merge_layers_multi:*": SEED,
}
