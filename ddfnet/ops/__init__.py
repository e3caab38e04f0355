"""Operators, one folder each: definition, implementations, registration."""

from ddfnet.ops.compile_cache import tag_compile_cache

tag_compile_cache()
