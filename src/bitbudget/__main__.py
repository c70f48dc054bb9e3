"""`python -m bitbudget` is the command `bitbudget`."""

from bitbudget.cli import main

if __name__ == "__main__":
    main()
