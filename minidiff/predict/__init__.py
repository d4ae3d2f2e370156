"""Prediction: a trained network as one compiled call."""
