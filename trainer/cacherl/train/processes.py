"""Which of several processes this one is, as its launcher (accelerate launch, torchrun) told it. Loads no framework."""

import os


def launched_processes() -> int:
    """Processes that train together; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Whether this is the one that writes metrics and shows progress."""
    return int(os.environ.get("RANK", "0")) == 0
