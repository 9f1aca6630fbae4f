"""`python -m llm` is the command `llm`."""

from llm.cli.main import main

main()
