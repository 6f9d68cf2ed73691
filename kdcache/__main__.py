"""``python -m kdcache``."""

from kdcache.cli import main

main()
