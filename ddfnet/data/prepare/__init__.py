"""Prepared stores: written once from any source, so that training reads regions of a few large files."""
