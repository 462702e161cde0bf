"""mamba-ssm's Triton kernel for the Mamba-2 scan, for CUDA tensors; optional (requirements-cuda.txt)."""

import importlib.util
import sys
import types
from importlib import metadata


def load_mamba_ssm_scan():
    """-> mamba_ssm's Triton kernel as a function like `model.ssd_scan`, with its `version`; ImportError if it is not
    there. The package itself is not imported, only its Triton files: PyPI's needs a CUDA extension at import, which
    rarely fits the torch at hand, and which this kernel does without.
    """
    spec = None if 'mamba_ssm' in sys.modules else importlib.util.find_spec('mamba_ssm')
    if spec:
        package = types.ModuleType('mamba_ssm')
        package.__path__ = list(spec.submodule_search_locations)
        sys.modules['mamba_ssm'] = package
    try:
        from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined
    finally:
        if spec:
            del sys.modules['mamba_ssm']  # whoever wants the package itself gets it, not this stand-in

    def scan(x, dt, A, B, C, chunk_size=32):
        return mamba_chunk_scan_combined(x, dt, A, B.unsqueeze(2), C.unsqueeze(2), chunk_size=chunk_size)

    scan.version = metadata.version('mamba-ssm') if spec else ''
    return scan
