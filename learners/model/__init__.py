"""The model behind a learner: weights, adapters, templates, log-probabilities."""
