"""Takes out of Triton's interpreter what makes it slow and these tests need not have: more than half of its time."""

import dataclasses
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter


def quicken() -> None:
    """Changes the interpreter of this process, if it is built as expected; else it stays slow.

    Each addition, subtraction and product of 32-bit integers is done once more in 64 bits, to see whether it overflows:
    tensors of the tests are too small for that. Each call of a helper function replaces the functions of
    `triton.language` by interpreted ones, which the call of the kernel around it has done before. And for each value a
    table of all dtypes is made, to find NumPy's.
    """
    builder = interpreter.interpreter_builder
    builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)
    if hasattr(interpreter, "_get_np_dtype"):
        _remember_dtypes()
    if hasattr(interpreter, "_LangPatchScope"):
        _replace_the_language_once_a_kernel()


def _remember_dtypes() -> None:
    find, found = interpreter._get_np_dtype, {}

    def find_once(dtype: tl.dtype) -> np.dtype:
        if dtype.name not in found:
            found[dtype.name] = find(dtype)
        return found[dtype.name]

    interpreter._get_np_dtype = find_once


def _replace_the_language_once_a_kernel() -> None:
    replace, done = interpreter._patch_lang, set()

    def replace_once(function: Any) -> Any:
        # a module of Triton's own calls `triton.language.core` what is `tl` elsewhere: both have to be replaced
        modules = frozenset(id(value) for value in function.__globals__.values() if value is tl or value is tl.core)
        if modules in done:
            return None
        is_kernel = not done
        done.add(modules)
        scope = replace(function)
        if is_kernel:  # only these replacements are taken back
            restore = scope.restore
            scope.restore = lambda: (restore(), done.clear())
        return scope

    interpreter._patch_lang = replace_once
