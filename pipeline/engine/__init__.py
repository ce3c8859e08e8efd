"""The decode engine: the only part that imports torch. It needs neither Ray nor pyarrow."""

from pipeline.engine.decode import Engine
from pipeline.engine.memory import check_room, keep_freed_memory
from pipeline.engine.model import GPT2, load_model

__all__ = ["GPT2", "Engine", "check_room", "keep_freed_memory", "load_model"]
