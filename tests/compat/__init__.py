"""Other programs and other versions of libraries, each in an environment of its own."""
