"""Families of tasks for meta-learning: each trial is on a task of its own, which only experience tells."""
