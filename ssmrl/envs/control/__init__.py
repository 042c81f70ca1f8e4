"""Continuous control in plain jnp, after the small tasks of the DeepMind Control Suite; see ``control.py``."""
