"""What readers yield."""

from typing import Any

from himalaya_adapter.errors import HimalayaError

Row = dict[str, Any]


class BadRow(HimalayaError):
    """A record that is no row, or a row that gives no item; ``reason`` is what such rows are counted under."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
