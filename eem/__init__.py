"""The command `eem`: options and printing only; each command is a short story that calls `modeling_eem`.

Commands import what they need inside their functions: `eem --help` must start without PyTorch.
"""
