"""Language models: data, sampling, reference log-probabilities, training and evaluation of preference objectives."""
