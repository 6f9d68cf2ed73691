"""The distillation methods, each a module that provides what ``kdcache.methods.contract.Method`` lists."""

from kdcache.methods.registry import METHODS, explained, load_method, method, names, register

__all__ = ["METHODS", "explained", "load_method", "method", "names", "register"]
