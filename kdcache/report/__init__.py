"""Reports: contact sheets of clips; tables and plots of comparisons, and ``ablate``, which makes both."""
