"""Weight optimizers with their learning-rate schedules, by name, from optax."""

import jax
import optax

from fliqs_jax.checks import check_not_negative

OPTIMIZERS = ("sgd", "adamw")


def cosine_schedule(
    learning_rate: float,
    *,
    steps: int,
    warmup_fraction: float = 0.02,
    restart_at: int | None = None,
) -> optax.Schedule:
    """Returns linear warm-up to `learning_rate`, then half a cosine down to zero.

    Args:
      learning_rate: the highest.
      steps: at whose end it is zero.
      warmup_fraction: of the steps.
      restart_at: step from which on it is the schedule of a run of the steps left, a
        warm restart; None is without.

    Reference:
      Loshchilov and Hutter, SGDR, 2017, https://arxiv.org/abs/1608.03983
    """
    warmup = max(1, round(warmup_fraction * steps))
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, learning_rate, warmup, max(steps, warmup + 1), 0.0
    )
    if restart_at is None:
        return schedule
    rest = cosine_schedule(
        learning_rate, steps=steps - restart_at, warmup_fraction=warmup_fraction
    )
    return optax.join_schedules([schedule, rest], [restart_at])


def make_optimizer(
    name: str,
    schedule: optax.Schedule,
    *,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
) -> optax.GradientTransformation:
    """Returns SGD with Nesterov momentum, or AdamW.

    Weight decay leaves vectors (biases, norms) alone. For SGD it is the L2 penalty's
    gradient, in front of the momentum; for AdamW it is decoupled.

    Args:
      name: "sgd" or "adamw".
      schedule: learning rate by step.
      momentum: of SGD; AdamW has its usual 0.9 and 0.999.
      weight_decay: not negative.

    Raises:
      ValueError: if the name is another one or the decay is negative.
    """
    check_not_negative(weight_decay=weight_decay)

    def is_matrix(params):
        return jax.tree.map(lambda leaf: leaf.ndim > 1, params)

    if name == "sgd":
        return optax.chain(
            optax.add_decayed_weights(weight_decay, mask=is_matrix),
            optax.sgd(schedule, momentum=momentum, nesterov=True),
        )
    if name == "adamw":
        return optax.chain(
            optax.clip_by_global_norm(1.0),
            optax.adamw(schedule, weight_decay=weight_decay, mask=is_matrix),
        )
    raise ValueError(f"optimizer must be one of {', '.join(OPTIMIZERS)}, got {name!r}")
