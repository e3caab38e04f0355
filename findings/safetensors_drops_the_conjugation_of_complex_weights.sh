#!/usr/bin/env bash
# Finding (2026-11): safetensors saves a conjugated PyTorch tensor without its conjugation; all imaginary parts come
# back with the wrong sign.
#
# Expected: save_file({"w": z.conj()}) stores the numbers that z.conj() prints, or is refused, as tensors that are not
#   contiguous or share memory are. torch.save keeps them.
# Real: in PyTorch, conj() copies nothing; it sets a bit on a view, and is_contiguous() stays true. safetensors checks the
#   strides, then writes the memory as it is. Shape and dtype are right and nothing is said. The same bit is what
#   torch.resolve_conj and conj_physical make real. The negative bit, which real tensors may carry (the imaginary part
#   of a conjugated tensor, once it lies alone in memory), is lost in the same way.
# Why it matters: complex weights are those of Fourier layers (global filter networks, FNO, correlation filters of
#   trackers). A correlation is a product with the conjugate, so the template that is stored is conj(fft2(patch)). Loaded
#   from the file, correlation has become convolution: the peak at the place of the patch is gone, in a network that
#   was right until it was saved. z.mH, conjugated and transposed, is refused, since it is not contiguous.
# Way out, checked below: resolve_conj() (or resolve_neg()) before saving.
#
# Versions: safetensors 0.8.0, torch 2.14.1, numpy 2.4.6, Python 3.11. Date: 2026-11.
# Output that was seen:
#   safetensors 0.8.0 torch 2.14.1
#     z                            contiguous True   kept
#     z.conj()                     contiguous True   LOST
#     z.conj().resolve_conj()      contiguous True   kept
#     z.conj_physical()            contiguous True   kept
#     view_as_real(resolved)       contiguous True   kept
#     z.conj().imag of one number  contiguous True   LOST
#     the same, resolve_neg()      contiguous True   kept
#     z.mH                         contiguous False  refused
#     z.conj() by torch.save       contiguous True   kept
#     tracker, patch moved by 5 columns: found at 5 before saving, at 16 after loading
#   OK: behavior is as described
set -euo pipefail

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  torch==2.14.1 safetensors==0.8.0 numpy==2.4.6

cat > "$work/check.py" <<'PY'
import importlib.metadata
import sys
import warnings

import torch
from safetensors.torch import load_file, save_file

warnings.simplefilter("ignore")
print(*(f"{name} {importlib.metadata.version(name)}" for name in ("safetensors", "torch")))
path = sys.argv[1] + "/weights.safetensors"
torch.manual_seed(0)
z = torch.randn(2, 3, dtype=torch.complex64)
alone = torch.view_as_real(z.conj().resolve_conj())  # real numbers, no bit
lone = z[:1, :1].conj().imag  # one number, so it is contiguous, with the negative bit
cases = {
    "z": z,
    "z.conj()": z.conj(),
    "z.conj().resolve_conj()": z.conj().resolve_conj(),
    "z.conj_physical()": z.conj_physical(),
    "view_as_real(resolved)": alone,
    "z.conj().imag of one number": lone,
    "the same, resolve_neg()": lone.resolve_neg(),
    "z.mH": z.mH,
}
wished = dict.fromkeys(cases, "kept")
wished["z.conj()"] = wished["z.conj().imag of one number"] = "LOST"
wished["z.mH"] = "refused"
seen = {}
for name, tensor in cases.items():
    try:
        save_file({"w": tensor}, path)
    except ValueError:
        seen[name] = "refused"
    else:
        loaded = load_file(path)["w"]
        assert loaded.shape == tensor.shape and loaded.dtype == tensor.dtype
        seen[name] = "kept" if torch.equal(loaded, tensor) else "LOST"
    print(f"  {name:28s} contiguous {tensor.is_contiguous()!s:5s}  {seen[name]}")

torch.save({"w": z.conj()}, path + ".pt")
by_torch = torch.equal(torch.load(path + ".pt", weights_only=True)["w"], z.conj())
print(f"  {'z.conj() by torch.save':28s} contiguous True   {'kept' if by_torch else 'LOST'}")

# A tracker's filter: where is the patch in the image moved by 5 columns?
patch = torch.randn(32, 32)
template = torch.fft.fft2(patch).conj()
image = torch.fft.fft2(patch.roll(5, 1))


def shift(weights):
    return int(torch.fft.ifft2(image * weights).real[0].argmax())


save_file({"w": template}, path)
before, after = shift(template), shift(load_file(path)["w"])
print(f"  tracker, patch moved by 5 columns: found at {before} before saving, at {after} after loading")
if seen != wished or not by_torch or before != 5 or after == 5:
    sys.exit(f"CHANGED: {seen}")
print("OK: behavior is as described")
PY
"$work/venv/bin/python" "$work/check.py" "$work"
