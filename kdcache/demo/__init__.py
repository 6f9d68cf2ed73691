"""``kdcache demo``: the whole tool on a data set it renders itself, with no network and no GPU."""

from kdcache.demo.tour import run_demo

__all__ = ["run_demo"]
