"""Flax modules that map a feature map to a feature map."""
