"""Configuration of O-LoRA as a PEFT method."""

from dataclasses import dataclass, field

from peft import PeftConfig, PeftType

AT_LEAST_ONE = ("r", "lora_alpha")
NOT_NEGATIVE = ("lambda_1", "lambda_2")


@dataclass
class OLoraConfig(PeftConfig):
    """
    Configuration of an [`OLoraModel`]: a low-rank adapter per task, all of them active. Its memory grows with the
    tasks.

    Not to be taken for PEFT's `LoraConfig(init_lora_weights="olora")`, a way to initialise one LoRA.

    Args:
        r (`int`): Rank of each task's adapter. Start from 8.
        lora_alpha (`int`): Every adapter's product is scaled by `lora_alpha / r`. Start from 16.
        lambda_1 (`float`):
            Weight of the overlap with earlier tasks' adapters in the loss. Higher forgets less and leaves less freedom
            to learn. The authors use 0.5 for most tasks.
        lambda_2 (`float`): Weight of the norms of the present task's matrices in the loss. The authors use 0 or 0.1.
        target_modules (`list[str] | str`, *optional*):
            The linear modules to adapt: names, name endings or one regular expression. By default those of PEFT's
            LoRA, for decoder models usually the queries and values.
        exclude_modules (`list[str] | str`, *optional*): Modules not to adapt although `target_modules` matches them.
        layers_to_transform (`list[int] | int`, *optional*): Adapt only these layer indices.
        layers_pattern (`list[str] | str`, *optional*): Name of the layer list, if it is not a common one.
        modules_to_save (`list[str]`, *optional*): Further modules to train and save whole.
        seed (`int`): Seed of the adapters of the second and later tasks.
        init_weights (`bool`):
            `True`: a fresh adapter is an exact no-op. `False`: it starts at random, for tests only.

    Raises:
        ValueError: If a value is outside its range; the message names field, value and range.
    """

    r: int = field(default=8, metadata={"help": "Rank of each task's adapter."})
    lora_alpha: int = field(default=16, metadata={"help": "Products are scaled by lora_alpha / r."})
    lambda_1: float = field(default=0.5, metadata={"help": "Weight of the overlap with earlier tasks."})
    lambda_2: float = field(default=0.0, metadata={"help": "Weight of the norms of the present task's matrices."})
    target_modules: list[str] | set[str] | str | None = field(
        default=None, metadata={"help": "Linear modules to adapt: names, name endings or one regular expression."}
    )
    exclude_modules: list[str] | set[str] | str | None = field(
        default=None, metadata={"help": "Modules not to adapt."}
    )
    layers_to_transform: list[int] | int | None = field(
        default=None, metadata={"help": "Adapt only these layer indices."}
    )
    layers_pattern: list[str] | str | None = field(default=None, metadata={"help": "Name of the layer list."})
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Further modules to train and save whole."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of the adapters of the second and later tasks."})
    init_weights: bool = field(default=True, metadata={"help": "Start as an exact no-op."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType.O_LORA
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)
        if isinstance(self.exclude_modules, list):
            self.exclude_modules = set(self.exclude_modules)
        if self.layers_pattern and self.layers_to_transform is None:
            raise ValueError("`layers_pattern` needs `layers_to_transform`, the indices to pick from that list")
        for name in AT_LEAST_ONE:
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        for name in NOT_NEGATIVE:
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 0")
