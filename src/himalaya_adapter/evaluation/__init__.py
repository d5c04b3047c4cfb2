"""Scores of tasks, the accuracy matrix and its measures, and the drift of the base model."""
