"""A run as `eem train` makes it, from its file to its finished folder."""

from pathlib import Path

from modeling_eem.training import RunTrainer, prepare_run


def train(path: Path, *overrides: str) -> RunTrainer:
    trainer = RunTrainer(prepare_run(path, overrides))
    trainer.fit()
    trainer.write_finished_model()
    return trainer
