"""Operators, one folder each: definition, implementations, registration."""
