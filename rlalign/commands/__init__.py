"""What `rlalign` can be asked: one file a kind of question. The work is done elsewhere."""

from typing import Any

# For a command whose settings are written --section.key=value and read by rlalign.config.
PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}


def passed_on(context: Any) -> list[str]:
    """The settings among a command's arguments, once none is a misspelt option of its own.

    typer leaves every option that it does not know to the settings, which know no options.
    """
    own = [name for parameter in context.command.params for name in parameter.opts]
    long = [name[2:] for name in own if name.startswith("--")]
    for argument in context.args:
        dashes, _, name = argument.partition("=")[0].rpartition("--")
        if not argument.startswith("--") or dashes or "." in name or name in ("", "config"):
            continue
        from rlalign.problems import ConfigError
        from rlalign.settings.method_sections import AnyRun
        from rlalign.settings.schema import nearest

        settings = list(AnyRun.model_fields)
        close = None if name in settings else nearest(name, [*long, "config", *settings])
        if close in long:
            raise ConfigError(f"--{name} is unknown; did you mean --{close}?")
    return list(context.args)
