"""The command line: work directories, one owner at a time."""
