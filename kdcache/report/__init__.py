"""Pictures and tables of clips and runs."""
