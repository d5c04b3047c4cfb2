"""Configuration of O-LoRA as a PEFT method."""

from dataclasses import dataclass

from peft import PeftType

from himalaya_adapter.methods.targets import TargetsConfig


@dataclass
class OLoraConfig(TargetsConfig):
    """
    Configuration of an [`OLoraModel`]: a low-rank adapter per task, all of them active. Its memory grows with the
    tasks. Not to be taken for PEFT's `LoraConfig(init_lora_weights="olora")`, a way to initialise one LoRA.
    Beside the fields of [`TargetsConfig`]:

    Args:
        r (`int`): Rank of each task's adapter. Start from 8.
        lora_alpha (`int`): Every adapter's product is scaled by `lora_alpha / r`. Start from 16.
        lambda_1 (`float`):
            Weight of the overlap with earlier tasks' adapters in the loss. Higher forgets less and leaves less freedom
            to learn. The authors use 0.5 for most tasks.
        lambda_2 (`float`): Weight of the norms of the present task's matrices in the loss. The authors use 0 or 0.1.
        target_modules (`list[str] | str`, *optional*):
            Linear modules. By default those of PEFT's LoRA, for decoder models usually the queries and values.
        seed (`int`): Seed of the adapters of the second and later tasks.

    Raises:
        ValueError: If a value is outside its range; the message names field, value and range.
    """

    r: int = 8
    lora_alpha: int = 16
    lambda_1: float = 0.5
    lambda_2: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType.O_LORA
        for name in ("lambda_1", "lambda_2"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 0")
