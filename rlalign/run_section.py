"""The section `run`: where a run lies, and what it goes on from."""

from pydantic import Field

from rlalign.fields import Section


class RunSection(Section):
    """The run's folder, and whether to go on from a checkpoint."""

    name: str = Field(
        "auto",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
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
