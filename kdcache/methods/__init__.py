"""The distillation methods, each a module that provides what ``kdcache.methods.contract.Method`` lists."""

from kdcache.methods.registry import METHODS, explained, method

__all__ = ["METHODS", "explained", "method"]
