"""The command `eem`: options and printing only; each command is a short story that calls `modeling_eem`.

Commands import what they call inside, so that `eem --help` starts without PyTorch.
"""
