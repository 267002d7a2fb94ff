"""The alignment methods: data, models, losses, rollouts, training, evaluation and figures."""
