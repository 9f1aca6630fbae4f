"""Response bodies of the endpoints, a file for each."""
