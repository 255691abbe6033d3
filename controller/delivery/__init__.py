"""Layers by journalled grants, with look-ahead, and their results."""
