"""`python -m mrp` is the command `mrp`."""

from mrp.cli import main

if __name__ == "__main__":
    main()
