"""Agents, one file each. ``ssmrl list agents`` shows them."""

if __name__ != "ssmrl.agents":
    raise ImportError("import ssmrl.agents, not agents: the folder at the top of the repository is a link to it")
