from lm_eval.__main__ import cli_evaluate

import modeling_eem.evaluation.harness_models  # noqa: F401 (registers the model `eem`)

cli_evaluate()
