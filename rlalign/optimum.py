"""Settings under which training ends at another distribution than the target."""

from rlalign.settings.reward_settings import schedule_warnings
from rlalign.settings.sections import RunConfig


def shared_warnings(config: RunConfig) -> list[str]:
    """One line for each such setting of those that every algorithm reads."""
    kl, lines = config.kl, []
    if kl.coef == 0:
        lines.append("kl.coef=0: nothing holds the policy near its reference; there is no target")
    if kl.target is not None:
        lines.append(f"kl.target={kl.target}: beta moves; the target is the one of the final beta")
    return lines + schedule_warnings(config.rewards, config.train.iterations)
