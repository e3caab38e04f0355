"""Makes the Triton sources importable as `ddfnet.kernels.<file>`, and under no other name.

In a checkout they live in the top-level folder `kernels/`. That folder has no `__init__.py`, because the top-level
name `kernels` belongs to another package (Hugging Face's), which must keep working beside this one. A wheel carries
the same files inside this package, where they are found without help.
"""

from pathlib import Path

_here = Path(__file__).resolve().parent
_checkout = _here.parent.parent / "kernels"
# In site-packages `../../kernels` is that other package: only a checkout lacks the sources beside this file.
if not (_here / "ddf_forward.py").exists() and (_checkout / "ddf_forward.py").exists():
    __path__.append(str(_checkout))
