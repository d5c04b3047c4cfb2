"""From an experiment plan to run configs: by its fields, or drafted by a language model and judged by the schema."""

from .drafting import draft_configs
from .generation import Catalogue, generate_configs
from .plan import Plan, read_plan
from .run_files import RunText, check_file, write_configs

__all__ = [
    "Catalogue",
    "Plan",
    "RunText",
    "check_file",
    "draft_configs",
    "generate_configs",
    "read_plan",
    "write_configs",
]
