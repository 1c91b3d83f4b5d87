"""Inference with a model/guide pair: training objectives, and estimates of log p(x). No module knows a particular
model or guide."""
