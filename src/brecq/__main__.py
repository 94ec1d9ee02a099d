"""`python -m brecq` is the command `brecq`."""

from brecq.cli import main

if __name__ == "__main__":
    main()
