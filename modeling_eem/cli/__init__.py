"""Argument parsing only: each command is a short story that calls the strata above."""
