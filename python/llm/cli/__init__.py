"""The command line: what it says is what the Python functions say."""
