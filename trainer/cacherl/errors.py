"""The trainer's errors, one class per border that broke.

    CacheRLError
    ├── RendererMisfit        the tokenizer cannot express the chat format
    ├── ToolSchemaInvalid     a tool's parameters are not a JSON schema
    ├── EngineFailed          the model could not generate (infrastructure, never the model's error)
    ├── ToolUnavailable       a live tool could not be reached or its sandbox died (infrastructure)
    ├── TrajectoriesUnreadable  a recording cannot be opened or holds nothing usable
    ├── RunStopped            a run that cannot go on usefully; what it did is kept, --resume goes on
    ├── RunMisconfigured      settings that contradict each other, found before anything heavy starts
    └── TrainerContractBroken the pinned training framework does not behave as the adapter relies on

A tool result that says "Error: ..." is not here: it is an ordinary answer the model reads.
"""


class CacheRLError(Exception):
    """Base of every error raised on purpose in this package."""


class RendererMisfit(CacheRLError):
    """The tokenizer cannot express the chat format: one of its marks is not a single token."""


class ToolSchemaInvalid(CacheRLError):
    """A tool's parameters are not a valid JSON schema."""


class EngineFailed(CacheRLError):
    """The engine could not generate. A rollout it hits is void, not wrong."""


class ToolUnavailable(CacheRLError):
    """A live tool could not be reached. A rollout it hits is void, not wrong."""


class TrajectoriesUnreadable(CacheRLError):
    """A file of recorded trajectories cannot be opened, or not one of its lines is usable."""


class RunStopped(CacheRLError):
    """A run, or a stage of one, ended early: gradients without end, nothing but void rollouts, a failed child.

    What was done until the last checkpoint is kept. The message says what to mend before `--resume`.
    """


class RunMisconfigured(CacheRLError):
    """Settings that contradict each other or the data at hand."""


class TrainerContractBroken(CacheRLError):
    """The training framework does not keep what the adapter relies on; a wrong pin is the usual cause."""
