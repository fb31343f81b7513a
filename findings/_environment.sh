# Sourced by every script here. Makes a temporary folder that is removed on exit; `packages NAME==VERSION ...` fills a
# virtual environment in it (PyTorch first and on its own, so that the CPU build is taken); `python` then is its Python.
# FINDINGS_PYTHON=/path/to/python takes an environment that has the packages already, to check a change of a script quickly.
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
export TMPDIR=$WORK HF_HOME=$WORK/hub HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error TOKENIZERS_PARALLELISM=false
export HF_HUB_DISABLE_PROGRESS_BARS=1 HF_DATASETS_DISABLE_PROGRESS_BARS=1 TQDM_DISABLE=1 PYTHONWARNINGS=ignore
cd "$WORK"

packages() {
    if [ -n "${FINDINGS_PYTHON:-}" ]; then
        PATH=$(dirname "$FINDINGS_PYTHON"):$PATH
        return
    fi
    python3 -m venv --without-pip environment
    local pip="python3 -m pip --python environment/bin/python -qq --disable-pip-version-check" package
    for package in "$@"; do
        case $package in torch==*) $pip install --no-compile "$package" 2>/dev/null ;; esac
    done
    $pip install --no-compile --constraint "$HERE/../constraints.txt" "$@" 2>/dev/null
    PATH=$WORK/environment/bin:$PATH
}
