"""PEFT's tests that cannot pass, and why: one that passes nevertheless fails the build, as does another error."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Expected:
    """How and why a test fails."""

    raises: type[Exception]
    why: str


MERGE = Expected(NotImplementedError, "a static merge cannot equal an update that differs from token to token")
FLOAT32 = Expected(AssertionError, "the state stays in float32: the bound on the norms and the protection need it")
COUNT = Expected(AssertionError, "counts parameters per layer, but all layers share them; PEFT skips it for VeRA")
SEED = Expected(AssertionError, "expects another start from torch's global seed; ours depends on config.seed alone")
NO_OP = Expected(AssertionError, "the gain is fixed at 1, the source's letter: a fresh adapter is not a no-op")
SMALL_STEPS = Expected(
    AssertionError,
    "the tree's thresholds move by less than 1e-4 in three steps at rate 0.5; PEFT uses 100 for VB-LoRA and HiRA",
)
# By ``Class.test:case``, with wildcards.
ALLOWED: dict[str, Expected] = {
    # Up to the merge these check what does hold; NotImplementedError says that they got there.
    "TestPeftCustomModel.test_merge_layers*": MERGE,
    "TestPeftCustomModel.test_safe_merge:*": MERGE,
    "TestPeftCustomModel.test_forward_*float16*": MERGE,
    "TestPeftCustomModel.test_disable_adapters_with_merging:*": MERGE,
    "TestPeftCustomModel.test_delete_merged_adapter_*": MERGE,
    "TestMultipleActiveAdapters.test_*merge_*": MERGE,
    "TestDecoderModels.test_merge_layers:*": MERGE,
    "TestDecoderModels.test_merge_layers_nan:*": MERGE,
    "TestDecoderModels.test_merge_layers_fp16:*": MERGE,
    "TestQuantization.test_merge_unmerge_unload:*": MERGE,
    "TestPeftCustomModel.test_adapter_dtype_autocast:*-False-dtype[01]-*": FLOAT32,
    "TestDecoderModels.test_add_adapter_no_autocast_adapter_dtype:*": FLOAT32,
    "TestDecoderModels.test_training_decoders_layer_indexing:*": COUNT,
    "TestDecoderModels.test_merge_layers_multi:*": SEED,
    "TestPeftCustomModel.test_disable_adapters:fixed-gain": NO_OP,
    "TestPeftCustomModel.test_only_params_are_updated:layer-norm": SMALL_STEPS,
    "TestPeftCustomModel.test_only_params_are_updated:embedding": SMALL_STEPS,
}
