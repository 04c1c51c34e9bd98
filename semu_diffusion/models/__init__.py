"""Adapters: the only place that knows a model family (how it is noised, conditioned, called, sampled)."""
