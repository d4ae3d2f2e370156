"""The engine: tensors and the tape, ops and their kernels, layers, optimisers.

It knows nothing of pruning.
"""
