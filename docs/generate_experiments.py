"""The page of every key of a run config: config-keys.md of the site, from the schema."""

from himalaya_adapter.experiments.key_table import Key, run_keys
from himalaya_adapter.experiments.plans.prose import METHOD_PATTERNS, SUMMARY_PATTERNS, Pattern

KEY_HEAD = "| key | takes | default | meaning |"
PROSE_HEAD = "| key | read from | such as | value |"


ABOUT = """\
# Every key of a run config

[Run configs](experiments.md) says how a config is written and changed. `null` means: not set.
"""


def page() -> str:
    """Every key of a run config by its section, and the patterns of prose."""
    lines = [ABOUT, KEY_HEAD, "|" + "---|" * KEY_HEAD.count(" |")]
    lines += [_key_row(key) for key in run_keys().values() if not key.section]
    lines += ["", "## What is read from a plan's prose", "", PROSE_HEAD, "|" + "---|" * PROSE_HEAD.count(" |")]
    lines += [_pattern_row(pattern, "`experiment_summary`") for pattern in SUMMARY_PATTERNS]
    lines += [_pattern_row(pattern, "the method's text") for pattern in METHOD_PATTERNS]
    return "\n".join(lines) + "\n"


def _pattern_row(pattern: Pattern, source: str) -> str:
    return f"| `{pattern.key}` | {source} | {pattern.example} | {pattern.value} |"


def _key_row(key: Key) -> str:
    return f"| `{key.path}` | {key.expected} | {key.default} | {key.meaning.replace('``', '`')} |"
