"""The set-up brings no package that a CPU machine cannot use."""

import importlib.metadata
import os

import pytest
import torch

CUDA_ONLY = ("torchvision", "triton", "nvidia-")


def installed() -> set[str]:
    """The normalised names of every distribution in this environment."""
    names = (dist.metadata["Name"] for dist in importlib.metadata.distributions())
    return {name.lower().replace("_", "-").replace(".", "-") for name in names if name}


@pytest.mark.skipif(torch.version.cuda is not None, reason="this environment has a CUDA build of torch on purpose")
def test_a_cpu_build_of_torch_came_without_cuda_packages():
    names = installed()
    assert "torch" in names
    unwanted = sorted(name for name in names if name.startswith(CUDA_ONLY))
    assert not unwanted, f"{unwanted} came in beside torch {torch.__version__}; install with -c constraints.txt"


def test_continuous_integration_has_a_cpu_build_of_torch():
    if os.environ.get("WEFT_CPU_ONLY") != "1":
        pytest.skip("asked for by .ci/run alone: elsewhere a CUDA build is welcome")
    assert torch.version.cuda is None, f"set-up installed torch {torch.__version__}; give make a TORCH_INDEX with CPU builds"
