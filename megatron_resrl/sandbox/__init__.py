"""Runs programs that nobody trusts: in namespaces of their own, bounded, and without a service."""
