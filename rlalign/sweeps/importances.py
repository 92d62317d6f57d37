"""Which parameters a sweep's metric depends on: Optuna's fANOVA, or PED-ANOVA in its place."""

from dataclasses import dataclass

import optuna
from optuna.importance import (
    BaseImportanceEvaluator,
    FanovaImportanceEvaluator,
    PedAnovaImportanceEvaluator,
)

NEEDED = 4  # trials; with fewer the shares say nothing


@dataclass(frozen=True)
class Importances:
    """Shares that sum to 1, the largest first."""

    shares: dict[str, float]
    method: str
    trials: int


def importances(study: "optuna.Study") -> Importances | None:
    """None where fewer than two parameters vary, or too few trials were done to say."""
    done = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    names = list(dict.fromkeys(name for trial in done for name in trial.params))
    varied = [name for name in names if len({str(trial.params.get(name)) for trial in done}) > 1]
    values = {trial.value for trial in done}
    if len(done) < NEEDED or len(varied) < 2 or len(values) < 2:
        return None
    evaluator: BaseImportanceEvaluator
    try:
        evaluator, method = FanovaImportanceEvaluator(seed=0), "fANOVA"
    except ImportError:  # scikit-learn is not installed
        evaluator, method = PedAnovaImportanceEvaluator(), "PED-ANOVA"
    shares = optuna.importance.get_param_importances(study, evaluator=evaluator, params=varied)
    return Importances({name: float(share) for name, share in shares.items()}, method, len(done))
