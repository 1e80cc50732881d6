"""Predicts an objective of candidates from those evaluated so far.

The better of ridge regression and a support vector machine by cross-validation, fitted
in a second to some hundred candidates. Not here: which candidates to propose
(`evolution`).
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float, Int

Predictor = Callable[[np.ndarray], np.ndarray]  # float[N, F] -> float[N]

_ALPHAS = np.logspace(-1.0, 3.0, 9)
_PENALTIES = np.logspace(-0.5, 2.0, 6)  # C of the support vector machine
_FOLDS = 5
_FEWEST_FOR_SVR = 50  # below, cross-validation cannot tell the two apart


def one_hot(
    vectors: Int[np.ndarray, "N D"],
    counts: Int[np.ndarray, "D"],
    active: Bool[np.ndarray, "N D"],
) -> Float[np.ndarray, "N F"]:
    """Returns a column for every option of every decision, all 0 where it is dead.

    Args:
      vectors: option indices.
      counts: options per decision; F is their sum.
      active: False where a decision has no effect.

    Example:
      >>> live = np.array([[True, True], [True, False]])
      >>> one_hot(np.array([[0, 2], [1, 0]]), np.array([2, 3]), live).astype(int)
      array([[1, 0, 0, 0, 1],
             [0, 1, 0, 0, 0]])
    """
    features = np.zeros((len(vectors), int(counts.sum())))
    starts = np.cumsum(counts) - counts
    rows, columns = np.nonzero(active)
    features[rows, (starts + vectors)[rows, columns]] = 1.0
    return features


def fit_predictor(
    features: Float[np.ndarray, "N F"], values: Float[np.ndarray, "N"]
) -> Predictor:
    r"""Fits the better of ridge regression and RBF support vector regression.

    Features and values are standardised; constant columns drop out. Each family's
    strength of regularisation and then the family are those of the smallest mean
    squared error in cross-validation. The order of the rows does not matter.

    Args:
      features: of the evaluated candidates; 2 rows or more.
      values: one objective of theirs, finite.

    Returns:
      A function from features [N, F] to predicted values [N].

    Raises:
      ValueError: if there are fewer than two rows.

    Reference:
      Cummings et al., LINAS, 2022, https://arxiv.org/abs/2205.10358

    Example:
      >>> bits = np.random.default_rng(0).integers(0, 2, (40, 3)).astype(float)
      >>> predict = fit_predictor(bits, bits @ [1.0, 2.0, 4.0])
      >>> predict(np.array([[1.0, 0.0, 1.0]])).round(1).tolist()
      [5.0]
    """
    if len(values) < 2:
        raise ValueError(f"a predictor needs 2 candidates or more, got {len(values)}")
    order = np.lexsort((values, *features.T))
    features, values = features[order], values[order]
    centre, spread = features.mean(axis=0), features.std(axis=0)
    scale = np.divide(1.0, spread, out=np.zeros_like(spread), where=spread > 1e-12)
    middle, width = values.mean(), values.std()
    if width <= 1e-12 * abs(middle):
        return lambda features: np.full(len(features), middle)
    model = _best_model((features - centre) * scale, (values - middle) / width)
    return lambda features: middle + width * model.predict((features - centre) * scale)


def _best_model(features: np.ndarray, values: np.ndarray):
    """The fitted scikit-learn model of the smallest error in cross-validation."""
    from sklearn.linear_model import Ridge, RidgeCV
    from sklearn.model_selection import KFold
    from sklearn.svm import SVR

    # Leave-one-out errors at every alpha come from one decomposition.
    ridge = Ridge(alpha=RidgeCV(_ALPHAS).fit(features, values).alpha_)
    if len(values) < _FEWEST_FOR_SVR:
        return ridge.fit(features, values)
    # Shuffled, since the rows come sorted by their features.
    folds = KFold(_FOLDS, shuffle=True, random_state=0)
    parts = list(folds.split(features))

    def error(model) -> float:
        return sum(
            np.square(
                model.fit(features[train], values[train]).predict(features[test])
                - values[test]
            ).sum()
            for train, test in parts
        )

    models = [ridge, *(SVR(C=penalty, epsilon=0.01) for penalty in _PENALTIES)]
    return min(models, key=error).fit(features, values)
