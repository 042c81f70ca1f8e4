"""POPGym (Morad et al., 2023): the partially observable tasks of the original package, exactly, one file per family."""
