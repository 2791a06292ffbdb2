"""`python -m runstone` is the command `runstone`."""

from runstone.cli import main

if __name__ == "__main__":
    main()
