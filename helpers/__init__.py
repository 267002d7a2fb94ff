"""The alignment methods themselves: data, models, losses, rollouts, training, evaluation, figures."""
