"""Lines of the log as JSON objects, for programs that collect the logs of many ranks."""

from __future__ import annotations

import datetime
import json
import logging
import sys
from types import TracebackType
from typing import Any

from megatron_resrl.platform.places import own_place


class JsonFormatter(logging.Formatter):
    """Time, level, logger, rank, host, local rank, GPU, step, phase, message, exception.

    The step is null before the first one. Modules that need torch are asked for step and phase only
    once something else has imported them.
    """

    def format(self, record: logging.LogRecord) -> str:
        """One line without its end."""
        when = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        phases = sys.modules.get("megatron_resrl.platform.phases")
        line: dict[str, Any] = {
            "time": when.isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            **own_place().to_json(),
            "step": phases.current_step() if phases else None,
            "phase": phases.current().phase if phases else "start",
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def log_as_json() -> None:
    """From here on the root logger's lines, warnings and the last traceback are JSON."""
    for handler in logging.getLogger().handlers:
        handler.setFormatter(JsonFormatter())
    logging.captureWarnings(True)
    sys.excepthook = _log_exception


def logs_json() -> bool:
    """Whether `log_as_json` has been called."""
    return any(isinstance(each.formatter, JsonFormatter) for each in logging.getLogger().handlers)


def _log_exception(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    message = f"{kind.__name__}: {error}"
    logging.getLogger("megatron_resrl").critical(message, exc_info=(kind, error, trace))
