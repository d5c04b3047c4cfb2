"""From an experiment plan to run configs: by its fields, or drafted by a language model and judged by the schema."""

from .drafting import draft_configs
from .generation import content_of, generate_configs
from .plan import Plan, read_plan
from .run_files import read_runs, write_configs

__all__ = ["Plan", "content_of", "draft_configs", "generate_configs", "read_plan", "read_runs", "write_configs"]
