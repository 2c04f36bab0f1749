"""The learning rate, as a function of the step alone, so that it needs no state to resume."""

from training.recipe.config import RateConfig


def learning_rate(config: RateConfig, step: int) -> float:
    """Rate of step 0, 1, …: rises to the peak at the last step of the warm-up, then falls exponentially, so that it is
    `final_ratio` of the peak at `decay_steps`, and stays there.
    """
    if step < config.warmup_steps:
        return config.peak * (step + 1) / config.warmup_steps
    length = max(1, config.decay_steps - config.warmup_steps)
    return config.peak * config.final_ratio ** min(1.0, (step - config.warmup_steps) / length)
