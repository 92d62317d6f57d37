"""The section `run`: where a run lies, what it goes on from, how long it is waited for."""

from pydantic import Field

from rlalign.settings.fields import FileName, PositiveFloat, Section


class RunSection(Section):
    """The run's folder, and whether to go on from a checkpoint."""

    name: FileName = Field(
        "auto",
        description="the run's folder under `dir`; auto: the configuration's name and the time",
    )
    dir: str = Field("runs", min_length=1, description="where runs are kept")
    resume: str = Field(
        "never",
        description="never, auto (newest sound checkpoint of `name`, or a fresh start), or the "
        "path of a checkpoint",
    )
    allow_elastic: bool = Field(
        False,
        description="go on from a checkpoint of another number of processes; what follows is not "
        "what as many as before would have made (docs/reliability.md)",
    )
    timeout: PositiveFloat | None = Field(
        1800.0,
        description="seconds without a sign of life (a token, a micro-batch, a reward's call or an "
        "answer to one) from any process, after which the run counts as hung and is ended; "
        "null: never",
    )
    grace: PositiveFloat = Field(
        25.0,
        description="seconds that SIGTERM leaves to save in, before the processes are killed; "
        "launchers kill after 30",
    )
