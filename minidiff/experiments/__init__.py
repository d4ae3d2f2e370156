"""Experiments: data, models, training and the command line. They know engine and pruning."""
