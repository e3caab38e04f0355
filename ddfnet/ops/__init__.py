"""Operators, one folder each: definition, implementations, registration."""

from ddfnet.ops.compile_cache import tag_compile_cache
from ddfnet.ops.compile_memo import remember_written_arguments

tag_compile_cache()
remember_written_arguments()
