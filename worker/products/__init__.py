"""Products with a model's weights: which code computes them where torch's is not the fastest."""
