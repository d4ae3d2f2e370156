"""Pruning: gates, the surrogate of L0, and counts of what is left. It knows the engine.

What is the paper's (Shulman 2020, arXiv:2012.03653), by its abstract: parameters multiplied by
approximate binary gates, which are a deterministic and differentiable transformation of a
real-valued random vector and take on exact zeros; a surrogate of the L0 loss; group sparsity of
any kind; conditional computation in theory. Our own: the formulas of the transform, of the gates
and of the surrogate, and conditional computation in practice.
"""
