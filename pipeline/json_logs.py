"""Log lines as JSON, one object per line: time in UTC, level, logger, message, and the fields that the line has."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime


class JsonLines(logging.Formatter):
    """Formats a record; what is logged with `extra={"fields": {...}}` becomes keys of the object."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, in which line ends of the message are escaped."""
        values = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            values["traceback"] = self.formatException(record.exc_info)
        return json.dumps(values, ensure_ascii=False)
