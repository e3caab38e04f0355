"""Compilers in tests, before anything imports them."""

import os
import tempfile

# Tests compile anew: what they look at must come from the code of today, not from a cache on disk. What is known by its
# whole content is kept for a session, such as objects of C++ sources and precompiled headers, or each process would
# spend 15 s on them; in a folder of its own, as a killed compiler leaves files there that crash those who load them.
for _cache in ("INDUCTOR_FX_GRAPH_CACHE", "INDUCTOR_AUTOGRAD_CACHE", "_DYNAMO_AUTOMATIC_DYNAMIC_LOCAL_PGO"):
    os.environ.setdefault(f"TORCH{_cache}", "0")
if "TORCHINDUCTOR_CACHE_DIR" not in os.environ:  # else this is a process of a session
    _folder = tempfile.TemporaryDirectory(prefix="ddfnet-tests-")
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = _folder.name
