"""Sweeps: wandb's sweep files, run on this machine without an account.

``spec`` reads and checks a file, ``search`` draws its trials, ``runner`` trains them in vmapped populations, ``report``
says which one was best. Only ``runner`` imports jax.
"""
